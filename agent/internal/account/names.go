package account

import (
	"strconv"
	"syscall"
)

// nonblock keeps an open from hanging when somebody put a FIFO in the file's place.
const nonblock = syscall.O_NONBLOCK

// Names turns ids into names for listings. Make one per request: it reads the databases once.
type Names struct{ users, groups map[uint32]string }

// NewNames reads both databases; what cannot be read leaves the ids numeric.
func NewNames() *Names {
	names := &Names{users: map[uint32]string{}, groups: map[uint32]string{}}
	_ = eachLine(PasswdFile, func(fields []string) bool { return names.add(names.users, fields) })
	_ = eachLine(GroupFile, func(fields []string) bool { return names.add(names.groups, fields) })
	return names
}

func (*Names) add(to map[uint32]string, fields []string) bool {
	if len(fields) >= 3 {
		if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
			if _, taken := to[uint32(id)]; !taken {
				to[uint32(id)] = fields[0]
			}
		}
	}
	return len(to) < 65536
}

// User is the name of a uid, or the number.
func (n *Names) User(id uint32) string { return nameOf(n.users, id) }

// Group is the name of a gid, or the number.
func (n *Names) Group(id uint32) string { return nameOf(n.groups, id) }

func nameOf(names map[uint32]string, id uint32) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}
