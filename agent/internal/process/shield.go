package process

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// shielded says that the agent has a better out-of-memory score than usual, which children would inherit.
var shielded atomic.Bool

// Shield asks the kernel to spare pid 1, whose death ends the sandbox. Often not permitted; then nothing changes.
// gVisor (which has no osrelease there) takes the score and ignores it, so it is not worth a write per process.
func Shield() {
	if _, err := os.Stat("/proc/sys/kernel/osrelease"); err != nil {
		return
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	shielded.Store(err == nil && strings.HasPrefix(string(score), "-"))
}

func Unshield(pid int) {
	if shielded.Load() {
		_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
	}
}

// SealDescriptors marks whatever the agent itself inherited, so that no process it starts gets it.
func SealDescriptors() {
	folder, err := os.Open("/proc/self/fd")
	if err != nil {
		return
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(-1)
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}
