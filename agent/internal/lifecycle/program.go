package lifecycle

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"sandkeep/agent/internal/process"
)

// runProgram runs one of the sandbox's own to its end, as root, without input or output; at the deadline its group is killed.
func runProgram(reaper *process.Reaper, path string, arguments, env []string, patience time.Duration) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	exited := make(chan syscall.WaitStatus, 1)
	pid, err := reaper.Spawn(path, append([]string{path}, arguments...), &syscall.ProcAttr{
		Dir:   "/",
		Env:   append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, env...),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	}, func(status syscall.WaitStatus) { exited <- status })
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case status := <-exited:
		if status.Signaled() {
			return fmt.Errorf("%s: ended by signal %d", path, status.Signal())
		}
		if status.ExitStatus() != 0 {
			return fmt.Errorf("%s: exit status %d", path, status.ExitStatus())
		}
		return nil
	case <-timer.C:
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		return fmt.Errorf("%s: not done in %v", path, patience)
	}
}
