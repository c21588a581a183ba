// Package account answers who a user name is, from /etc/passwd and /etc/group as they are in the sandbox now.
// Parsed here, because a static binary has no NSS and images may lack getent.
package account

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Where the databases are; tests point them elsewhere.
var (
	PasswdFile = "/etc/passwd"
	GroupFile  = "/etc/group"
)

// Root is used when the image has no passwd file at all.
var root = Account{Name: "root", UID: 0, GID: 0, Home: "/root", Shell: "/bin/sh", Groups: []uint32{0}}

// Account is one line of passwd plus the groups that name it.
type Account struct {
	Name     string
	UID, GID uint32
	Home     string
	Shell    string
	Groups   []uint32
}

// ErrUnknown says that no such user exists; its text is what E2B's clients expect.
var ErrUnknown = errors.New("invalid username")

// maxDatabase bounds what is read of a file that the sandbox's root may have blown up.
const maxDatabase = 4 << 20

// Find looks a user up by name or by numeric id.
func Find(name string) (Account, error) {
	found, err := findPasswd(name)
	if err != nil {
		return Account{}, err
	}
	found.Groups = groupsOf(found)
	return found, nil
}

// FindOrRoot is for the default user: an image need not have it.
func FindOrRoot(name string) Account {
	if found, err := Find(name); err == nil {
		return found
	}
	if found, err := Find("root"); err == nil {
		return found
	}
	return root
}

func findPasswd(name string) (Account, error) {
	numeric := -1
	if id, err := strconv.ParseUint(name, 10, 32); err == nil {
		numeric = int(id)
	}
	var found *Account
	err := eachLine(PasswdFile, func(fields []string) bool {
		entry, ok := parsePasswd(fields)
		if ok && (entry.Name == name || int64(entry.UID) == int64(numeric)) {
			found = &entry
			return false
		}
		return true
	})
	switch {
	case found != nil:
		return *found, nil
	case errors.Is(err, os.ErrNotExist) && (name == "root" || numeric == 0):
		return root, nil
	default:
		return Account{}, fmt.Errorf("%w: '%s'", ErrUnknown, name)
	}
}

func parsePasswd(fields []string) (Account, bool) {
	if len(fields) < 6 || fields[0] == "" {
		return Account{}, false
	}
	uid, err1 := strconv.ParseUint(fields[2], 10, 32)
	gid, err2 := strconv.ParseUint(fields[3], 10, 32)
	if err1 != nil || err2 != nil {
		return Account{}, false
	}
	entry := Account{Name: fields[0], UID: uint32(uid), GID: uint32(gid), Home: fields[5], Shell: "/bin/sh"}
	if len(fields) > 6 && fields[6] != "" {
		entry.Shell = fields[6]
	}
	if !strings.HasPrefix(entry.Home, "/") {
		entry.Home = "/"
	}
	return entry, true
}

// groupsOf lists the primary group first, as initgroups does.
func groupsOf(user Account) []uint32 {
	groups := []uint32{user.GID}
	_ = eachLine(GroupFile, func(fields []string) bool {
		if len(fields) < 4 {
			return true
		}
		gid, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil || uint32(gid) == user.GID {
			return true
		}
		for _, member := range strings.Split(fields[3], ",") {
			if member == user.Name {
				groups = append(groups, uint32(gid))
				break
			}
		}
		return len(groups) < 1024
	})
	return groups
}

// eachLine calls visit with the fields of each line until it returns false.
func eachLine(path string, visit func(fields []string) bool) error {
	file, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxDatabase))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if !visit(strings.Split(line, ":")) {
			return nil
		}
	}
	return lines.Err()
}
