package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"sandkeep/agent/internal/procfs"
	"sandkeep/agent/internal/ring"
	"sandkeep/agent/internal/settings"
)

// outputGrace is how long, after a process that leaves others behind, their output is still taken for its own: that of a
// process substitution comes a moment after the shell has ended.
const outputGrace = 250 * time.Millisecond

// Process is one that a client started, alive or recently ended.
type Process struct {
	PID       int
	Spec      Spec
	Envs      map[string]string // as the client gave them, for List
	StartedAt time.Time
	Output    *ring.Ring

	reaper  *Reaper
	outputs []output
	input   *input
	ended   chan struct{}
	onEnd   func(*Process)
	timer   *time.Timer // the deadline
	expiry  *time.Timer // of being kept after the end; the table's

	mu        sync.Mutex
	pending   int // outputs still read, plus one until the process is reaped
	reaped    bool
	killed    bool // do not wait for whoever else holds the output open
	oomKilled bool
	kills     int64 // by the kernel for memory, when it was started
	timedOut  bool
	result    Result // valid once ended is closed
}

// start runs spec. onEnd is called once, when the result is there and the ring is closed.
func start(spec Spec, defaults *settings.Settings, reaper *Reaper, output *ring.Ring, onEnd func(*Process)) (*Process, error) {
	dir, err := spec.directory(defaults)
	if err != nil {
		return nil, err
	}
	envs := spec.Envs
	environment := spec.environment(defaults)
	flat, err := flatten(environment)
	if err != nil {
		return nil, err
	}
	file, err := spec.executable(environment["PATH"], dir)
	if err != nil {
		return nil, err
	}
	var plumbing *plumbing
	if spec.Terminal != nil {
		plumbing, err = connectTerminal(spec.User.UID, *spec.Terminal)
	} else {
		plumbing, err = connectPipes(spec.Stdin)
	}
	if err != nil {
		return nil, err
	}
	spec.Dir = dir
	p := &Process{
		Spec: spec, Envs: envs, StartedAt: time.Now(), Output: output, reaper: reaper,
		outputs: plumbing.output, input: newInput(plumbing.input, spec.Terminal != nil),
		ended: make(chan struct{}), onEnd: onEnd, pending: len(plumbing.output) + 1, kills: procfs.Kills(),
	}
	// A session of its own: signals to the group reach what it started, and none reach the agent.
	attributes := &syscall.ProcAttr{Dir: dir, Env: flat, Files: plumbing.child[:], Sys: &syscall.SysProcAttr{
		Setsid: true, Setctty: spec.Terminal != nil, Credential: spec.credential()}}
	p.mu.Lock() // the process may end before its pid is noted here
	p.PID, err = reaper.Spawn(file, append([]string{spec.Command}, spec.Args...), attributes, p.exited)
	p.mu.Unlock()
	if err != nil {
		plumbing.abandon()
		return nil, startError(spec, err)
	}
	Unshield(p.PID)
	plumbing.handOver()
	for _, o := range p.outputs {
		go func() {
			pump(o, p.Output)
			p.finishOne()
			if p.leaves() {
				discard(o.file)
			}
			_ = o.file.Close()
		}()
	}
	return p, nil
}

func startError(spec Spec, err error) error {
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
		return fmt.Errorf("error starting process '%s': %w", spec.Command, err)
	}
	if errors.Is(err, syscall.EACCES) { // of the folder or of the file: the kernel does not say
		err = fmt.Errorf("%w (user %s must be able to execute it and to enter '%s')", err, spec.User.Name, spec.Dir)
	}
	return fmt.Errorf("%werror starting process '%s': %v", ErrRefused, spec.Command, err)
}

// expireAfter kills the whole tree at a deadline, whether anybody is connected or not.
func (p *Process) expireAfter(timeout time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if timeout > 0 && p.pending > 0 {
		p.timer = time.AfterFunc(timeout, func() {
			p.mu.Lock()
			p.timedOut = p.pending > 0
			late := p.timedOut
			p.mu.Unlock()
			if late {
				p.KillTree(syscall.SIGKILL)
			}
		})
	}
}

// exited is called by the reaper.
func (p *Process) exited(status syscall.WaitStatus) {
	p.mu.Lock()
	p.reaped = true
	p.result = resultOf(status)
	p.result.At = time.Now()
	if p.killed {
		interrupt(p.outputs)
	} else if p.Spec.Leave && p.pending > 1 {
		time.AfterFunc(outputGrace, func() { interrupt(p.outputs) })
	}
	if !p.killed && (p.result.Signal == int(syscall.SIGKILL) || p.result.ExitCode == 128+int(syscall.SIGKILL)) && procfs.Kills() > p.kills {
		p.oomKilled = true // by the kernel: itself, or a child whose end a shell passed on
	}
	p.mu.Unlock()
	p.input.abandon()
	p.finishOne()
}

// finishOne counts down; the last of reaper and pumps ends the process.
func (p *Process) finishOne() {
	p.mu.Lock()
	p.pending--
	last := p.pending == 0
	if last {
		p.result.OOMKilled, p.result.TimedOut = p.oomKilled, p.timedOut
		if p.timer != nil {
			p.timer.Stop()
		}
	}
	p.mu.Unlock()
	if last {
		close(p.ended)
		p.Output.Close()
		p.onEnd(p)
	}
}

// leaves tells whether those who hold its output open may go on writing.
func (p *Process) leaves() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.Spec.Leave && !p.killed
}

// Ended returns the result once the process has ended and its output is complete, or left to others (Spec.Leave).
func (p *Process) Ended() (Result, bool) {
	select {
	case <-p.ended:
		return p.result, true
	default:
		return Result{}, false
	}
}

// Done is closed when Ended has something to say.
func (p *Process) Done() <-chan struct{} { return p.ended }

// MarkOOMKilled notes that the guard killed this process or one that it started.
func (p *Process) MarkOOMKilled() {
	p.mu.Lock()
	p.oomKilled = true
	p.mu.Unlock()
}

// Signal sends to the process, or to its group. SIGKILL always goes to the group, and ends the streams.
func (p *Process) Signal(number syscall.Signal, group bool) error {
	group = group || number == syscall.SIGKILL
	if number == syscall.SIGKILL && p.markKilled() {
		// It is gone already and only its children hold the output open.
		p.KillTree(number)
		return nil
	}
	if err := p.reaper.Signal(p.PID, group, number); err != nil {
		if errors.Is(err, syscall.ESRCH) {
			return ErrEnded
		}
		return err
	}
	return nil
}

// KillTree signals the group, the session and all descendants.
func (p *Process) KillTree(number syscall.Signal) {
	if number == syscall.SIGKILL {
		p.markKilled()
	}
	_ = p.reaper.Signal(p.PID, true, number)
	SignalTree(p.PID, number)
}

// markKilled tells whether the process is reaped but its streams are still open.
func (p *Process) markKilled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killed = true
	if p.reaped && p.pending > 0 {
		interrupt(p.outputs)
		return true
	}
	return false
}

// Write gives data to stdin, or to the terminal.
func (p *Process) Write(ctx context.Context, data []byte, toTerminal bool) error {
	switch {
	case p.gone():
		return ErrEnded
	case p.input == nil:
		return ErrNoInput
	case toTerminal != p.input.terminal:
		if toTerminal {
			return ErrNoTerminal
		}
		return ErrNoInput
	}
	return p.input.write(ctx, data)
}

// CloseInput ends stdin; a second time is fine.
func (p *Process) CloseInput(ctx context.Context) error {
	if p.input == nil {
		return ErrNoInput
	}
	return p.input.close(ctx)
}

// Resize changes the terminal's size.
func (p *Process) Resize(size Size) error {
	if p.Spec.Terminal == nil {
		return ErrNoTerminal
	}
	if p.gone() {
		return ErrEnded
	}
	raw, err := p.input.file.SyscallConn()
	if err != nil {
		return ErrEnded
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = resize(int(fd), size) }); err != nil {
		return ErrEnded
	}
	return failure
}

func (p *Process) gone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reaped
}
