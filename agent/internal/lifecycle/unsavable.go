package lifecycle

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/procfs"
)

const (
	maxHolders  = 100
	deletedMark = " (deleted)"
)

// holder is a process that keeps a deleted file of the root disk alive.
type holder struct {
	PID     int    `json:"pid"`
	Process string `json:"process"`
	Path    string `json:"path"`
	Kind    string `json:"kind"` // fd, map or cwd
}

// unsavable lists what gVisor could not save. truncated says that the deadline came first.
func unsavable(deadline time.Time) (found []holder, truncated bool) {
	found = []holder{}
	var root syscall.Stat_t
	if syscall.Stat("/", &root) != nil {
		return found, false
	}
	for _, pid := range process.PIDs() {
		if time.Now().After(deadline) || len(found) >= maxHolders {
			return found[:min(len(found), maxHolders)], true
		}
		folder := "/proc/" + strconv.Itoa(pid)
		held := deletedOpen(folder, root.Dev)
		if path, yes := deletedLink(folder+"/cwd", root.Dev); yes {
			held = append(held, holder{Path: path, Kind: "cwd"})
		}
		held = append(held, deletedMapped(folder, root.Dev)...)
		if len(held) == 0 {
			continue
		}
		name := procfs.Name(pid)
		for _, h := range held {
			h.PID, h.Process = pid, name
			found = append(found, h)
		}
	}
	return found[:min(len(found), maxHolders)], false
}

// deletedOpen looks at every descriptor of a process.
func deletedOpen(folder string, device uint64) (held []holder) {
	descriptors, err := os.Open(folder + "/fd")
	if err != nil {
		return nil
	}
	defer descriptors.Close()
	names, _ := descriptors.Readdirnames(-1)
	seen := map[string]bool{}
	for _, name := range names {
		if path, yes := deletedLink(folder+"/fd/"+name, device); yes && !seen[path] {
			seen[path] = true
			held = append(held, holder{Path: path, Kind: "fd"})
		}
	}
	return held
}

// deletedLink tells whether a link of /proc leads to a deleted file or directory of the root disk. gVisor 20240729
// goes on saying that such a file has one link, so the mark in its name counts as well.
func deletedLink(link string, device uint64) (path string, deleted bool) {
	path, err := os.Readlink(link)
	if err != nil || !strings.HasPrefix(path, "/") {
		return "", false // a pipe, a socket, an anonymous thing
	}
	marked := strings.HasSuffix(path, deletedMark)
	var stat syscall.Stat_t
	if syscall.Stat(link, &stat) != nil || uint64(stat.Dev) != device {
		return "", false
	}
	if kind := stat.Mode & syscall.S_IFMT; kind != syscall.S_IFREG && kind != syscall.S_IFDIR {
		return "", false
	}
	var same syscall.Stat_t
	if marked && syscall.Lstat(path, &same) == nil && same.Ino == stat.Ino {
		return "", false // it is just called so
	}
	return strings.TrimSuffix(path, deletedMark), marked || stat.Nlink == 0
}

// deletedMapped finds mapped files that are gone. Their device is in the line, as major and minor.
func deletedMapped(folder string, device uint64) (held []holder) {
	maps, err := os.Open(folder + "/maps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	seen := map[string]bool{}
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || !strings.HasPrefix(fields[5], "/") {
			continue
		}
		path := strings.Join(fields[5:], " ")
		if seen[path] || fields[3] != deviceName(device) {
			continue
		}
		seen[path] = true
		if strings.HasSuffix(path, deletedMark) {
			held = append(held, holder{Path: strings.TrimSuffix(path, deletedMark), Kind: "map"})
		}
	}
	return held
}

// deviceName is how maps writes a device.
func deviceName(device uint64) string {
	major := device>>8&0xfff | device>>32&^0xfff
	minor := device&0xff | device>>12&^0xff
	return hex2(major) + ":" + hex2(minor)
}

func hex2(value uint64) string {
	text := strconv.FormatUint(value, 16)
	if len(text) < 2 {
		return "0" + text
	}
	return text
}
