package process

import (
	"strconv"
	"syscall"
	"time"
)

// Result is how a process ended.
type Result struct {
	ExitCode  int // -1 when a signal ended it
	Exited    bool
	Signal    int // 0 when it exited by itself
	Status    string
	OOMKilled bool
	TimedOut  bool
	At        time.Time
}

func resultOf(status syscall.WaitStatus) Result {
	if status.Signaled() {
		text := "signal: " + status.Signal().String()
		if status.CoreDump() {
			text += " (core dumped)"
		}
		return Result{ExitCode: -1, Signal: int(status.Signal()), Status: text}
	}
	return Result{ExitCode: status.ExitStatus(), Exited: true, Status: "exit status " + strconv.Itoa(status.ExitStatus())}
}

// Error is what E2B's clients show when a command failed; empty on success.
func (r Result) Error() string {
	if r.Exited && r.ExitCode == 0 {
		return ""
	}
	return r.Status
}
