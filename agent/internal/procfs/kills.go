package procfs

import (
	"bytes"
	"os"
	"strconv"
	"sync"
)

// Where a container sees its own control group, version 2 and 1. In gVisor neither is there.
var killFiles = []string{"/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"}

var killFile = sync.OnceValue(func() string {
	for _, name := range killFiles {
		if _, err := os.Stat(name); err == nil {
			return name
		}
	}
	return ""
})

// Kills is how often the kernel has killed a process of this sandbox because its memory was used up; 0 where it cannot
// be known.
func Kills() int64 {
	if killFile() == "" {
		return 0
	}
	text, err := os.ReadFile(killFile())
	if err != nil {
		return 0
	}
	return killsIn(text)
}

func killsIn(text []byte) int64 {
	for line := range bytes.Lines(text) {
		if key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" ")); ok && string(key) == "oom_kill" {
			count, _ := strconv.ParseInt(string(value), 10, 64)
			return count
		}
	}
	return 0
}
