// Package process starts processes as other users, keeps their output, and collects every child of pid 1.
package process

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Reaper is the one place that waits for children. Nothing else in the agent may call wait, or use os/exec.
type Reaper struct {
	mu       sync.Mutex // held over fork and registration, and over wait and removal: a pid here is never stale
	watched  map[int]func(syscall.WaitStatus)
	newChild chan struct{}
}

// NewReaper starts reaping. Not as pid 1 (in tests), it becomes the subreaper, so that orphans come to it all the same.
func NewReaper() *Reaper {
	r := &Reaper{watched: map[int]func(syscall.WaitStatus){}, newChild: make(chan struct{}, 1)}
	if os.Getpid() != 1 {
		_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	}
	go r.loop()
	return r
}

const (
	prSetChildSubreaper = 36
	waitAll             = 0 // P_ALL
	waitExited          = 4 // WEXITED
	waitLeave           = 0x01000000
	siginfoSize         = 128
	siginfoPID          = 16 // offset of si_pid on 64-bit Linux
)

// Spawn forks and registers in one step; exited is called once, from the reaper's goroutine, and must not block.
func (r *Reaper) Spawn(argv0 string, argv []string, attributes *syscall.ProcAttr, exited func(syscall.WaitStatus)) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(argv0, argv, attributes)
	if err != nil {
		return 0, err
	}
	r.watched[pid] = exited
	select {
	case r.newChild <- struct{}{}:
	default:
	}
	return pid, nil
}

// Signal sends to a child that has not been reaped, so it can never hit a stranger with a reused pid.
// With group it goes to the process group that the child leads.
func (r *Reaper) Signal(pid int, group bool, number syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, alive := r.watched[pid]; !alive {
		return syscall.ESRCH
	}
	if group {
		return syscall.Kill(-pid, number)
	}
	return syscall.Kill(pid, number)
}

func (r *Reaper) loop() {
	for {
		pid, err := peek(0)
		switch err {
		case nil:
			r.collect(pid)
		case syscall.EINTR:
		case syscall.ECHILD:
			r.idle()
		default:
			time.Sleep(100 * time.Millisecond) // not known to happen; must not spin
		}
	}
}

// idle waits until there can be children again: ours, or an orphan of something started from outside.
func (r *Reaper) idle() {
	orphans := make(chan os.Signal, 1)
	signal.Notify(orphans, syscall.SIGCHLD)
	defer signal.Stop(orphans)
	if _, err := peek(syscall.WNOHANG); err == nil {
		return
	}
	select {
	case <-orphans:
	case <-r.newChild:
	}
}

// Nudge makes the reaper look again: after a memory restore, signals may have been lost.
func (r *Reaper) Nudge() {
	select {
	case r.newChild <- struct{}{}:
	default:
	}
}

func (r *Reaper) collect(pid int) {
	if pid == 0 {
		return
	}
	var status syscall.WaitStatus
	r.mu.Lock()
	_, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
	exited := r.watched[pid]
	delete(r.watched, pid)
	r.mu.Unlock()
	if exited != nil && err == nil {
		exited(status)
	}
}

// peek waits for a dead child without collecting it, so that its pid stays taken until collect holds the lock.
func peek(flags int) (int, error) {
	var info [siginfoSize]byte
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, waitAll, 0, uintptr(unsafe.Pointer(&info)),
		uintptr(waitExited|waitLeave|flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(*(*int32)(unsafe.Pointer(&info[siginfoPID]))), nil
}
