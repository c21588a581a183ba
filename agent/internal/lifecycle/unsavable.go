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
	Kind    string `json:"kind"` // fd or map
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
		held := append(deletedOpen(folder, root.Dev), deletedMapped(folder, root.Dev)...)
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

// deletedOpen asks each descriptor itself for its links rather than trusting its name.
func deletedOpen(folder string, device uint64) (held []holder) {
	descriptors, err := os.Open(folder + "/fd")
	if err != nil {
		return nil
	}
	defer descriptors.Close()
	names, _ := descriptors.Readdirnames(-1)
	for _, name := range names {
		link := folder + "/fd/" + name
		path, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(path, "/") {
			continue // a pipe, a socket, an anonymous thing
		}
		var stat syscall.Stat_t
		if syscall.Stat(link, &stat) != nil || !isDeleted(path, &stat, device) {
			continue
		}
		held = append(held, holder{Path: strings.TrimSuffix(path, deletedMark), Kind: "fd"})
	}
	return held
}

func isDeleted(path string, stat *syscall.Stat_t, device uint64) bool {
	if kind := stat.Mode & syscall.S_IFMT; kind != syscall.S_IFREG && kind != syscall.S_IFDIR {
		return false
	}
	return uint64(stat.Dev) == device && (stat.Nlink == 0 || strings.HasSuffix(path, deletedMark))
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
