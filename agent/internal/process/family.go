package process

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// Stat is what /proc/<pid>/stat says about family.
type Stat struct{ PID, Parent, Group, Session int }

// ReadStat parses one process's line; the name in it may hold anything, so it is skipped from its last parenthesis.
func ReadStat(pid int) (Stat, bool) {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, false
	}
	return parseStat(pid, line)
}

func parseStat(pid int, line []byte) (Stat, bool) {
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	if len(fields) < 4 {
		return Stat{}, false
	}
	stat := Stat{PID: pid}
	for i, to := range []*int{&stat.Parent, &stat.Group, &stat.Session} {
		value, err := strconv.Atoi(string(fields[i+1]))
		if err != nil {
			return Stat{}, false
		}
		*to = value
	}
	return stat, true
}

// PIDs lists every process that can be seen.
func PIDs() []int {
	folder, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(-1)
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// SignalTree signals everything in leader's session and everything that descends from it. It looks again until it
// finds nobody new, because the tree may fork while it is being killed.
func SignalTree(leader int, number syscall.Signal) {
	self := os.Getpid()
	done := map[int]bool{self: true, 1: true}
	for pass := 0; pass < 8; pass++ {
		var stats []Stat
		for _, pid := range PIDs() {
			if stat, ok := ReadStat(pid); ok {
				stats = append(stats, stat)
			}
		}
		family := familyOf(leader, stats)
		found := false
		for pid := range family {
			if !done[pid] {
				done[pid], found = true, true
				_ = syscall.Kill(pid, number)
			}
		}
		if !found || number != syscall.SIGKILL {
			return
		}
	}
}

func familyOf(leader int, stats []Stat) map[int]bool {
	family := map[int]bool{}
	for grown := true; grown; {
		grown = false
		for _, s := range stats {
			member := s.PID == leader || s.Session == leader || s.Group == leader || family[s.Parent]
			if member && !family[s.PID] {
				family[s.PID], grown = true, true
			}
		}
	}
	return family
}
