package lifecycle

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"sandkeep/agent/internal/process"
)

const (
	keygen         = "/usr/bin/ssh-keygen"
	keygenPatience = 7 * time.Second // the host waits 10 for the answer to /init
)

// makeHostKeys has the sandbox's own ssh-keygen make those that are missing.
func makeHostKeys(reaper *process.Reaper) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	exited := make(chan syscall.WaitStatus, 1)
	pid, err := reaper.Spawn(keygen, []string{"ssh-keygen", "-A"}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	}, func(status syscall.WaitStatus) { exited <- status })
	if err != nil {
		return fmt.Errorf("%s: %w", keygen, err)
	}
	select {
	case status := <-exited:
		if status.ExitStatus() != 0 {
			return fmt.Errorf("%s -A: status %d", keygen, status)
		}
		return nil
	case <-time.After(keygenPatience):
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		return fmt.Errorf("%s -A: not done in %v", keygen, keygenPatience)
	}
}
