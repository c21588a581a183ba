// Package guard kills the largest processes before the sandbox runs out of memory. In gVisor the kernel's own
// out-of-memory killer takes the whole sandbox; with some headroom outside, killing early from inside saves it.
package guard

import (
	"sync"
	"syscall"
	"time"

	"sandkeep/agent/internal/events"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/procfs"
)

const (
	// Below the low mark processes are killed until the high mark is free.
	lowMark  = 0.125
	highMark = 0.25

	effectWait = 300 * time.Millisecond
	effectLook = 4 * time.Millisecond
	stuckPause = 5 * time.Second
	// A process smaller than this part of memory is not worth killing: something else (tmpfs) has the memory.
	smallestVictim = 0.02
)

// Guard polls while it is enabled. Its zero value is not usable.
type Guard struct {
	table *process.Table
	log   *events.Log
	kick  chan struct{}
	stuck bool // the polling goroutine's

	mu    sync.Mutex
	stop  chan struct{} // nil while disabled
	limit int64
}

// New makes a disabled guard.
func New(table *process.Table, log *events.Log) *Guard {
	return &Guard{table: table, log: log, kick: make(chan struct{}, 1)}
}

// Set turns it on or off; limit is the memory to reckon with, 0 for MemTotal.
func (g *Guard) Set(on bool, limit int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
	switch {
	case on && g.stop == nil:
		g.stop = make(chan struct{})
		go g.run(g.stop)
	case !on && g.stop != nil:
		close(g.stop)
		g.stop = nil
	}
	g.Wake()
}

// Wake makes it look now and often for a while: a process was started, or memory was restored.
func (g *Guard) Wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

func (g *Guard) run(stop chan struct{}) {
	memory, err := procfs.NewMemoryReader()
	if err != nil {
		return
	}
	defer memory.Close()
	pace := &pace{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-stop:
			return
		case <-g.kick:
			pace.restart()
		case <-timer.C:
		}
		state, ok := g.look(memory)
		if ok && state.share() < lowMark && !g.relieve(memory, state) {
			timer.Reset(stuckPause)
			continue
		}
		g.stuck = false
		timer.Reset(pace.next(state, g.table.Live() == 0 && lonely()))
	}
}

// state is memory as the guard reckons.
type state struct{ total, available int64 }

func (s state) share() float64 { return float64(s.available) / float64(max(1, s.total)) }

func (g *Guard) look(memory *procfs.MemoryReader) (state, bool) {
	now, err := memory.Read()
	if err != nil || now.Total <= 0 {
		return state{1, 1}, false
	}
	g.mu.Lock()
	limit := g.limit
	g.mu.Unlock()
	if limit <= 0 || limit > now.Total {
		return state{now.Total, now.Available}, true
	}
	return state{limit, limit - (now.Total - now.Available)}, true
}

// relieve kills until enough is free; false when there is nobody left whose death would help.
//
// First everything is stopped, by one system call: looking at each process takes dozens, and eight hogs on two processors
// fill the headroom before those are done. Nobody grows meanwhile, so nobody dies for nothing either.
func (g *Guard) relieve(memory *procfs.MemoryReader, now state) bool {
	freeze()
	defer thaw()
	dying := map[int]bool{}
	for now.share() < highMark {
		missing := int64(highMark*float64(now.total)) - now.available
		victims := choose(candidates(dying), missing, int64(smallestVictim*float64(now.total)))
		if len(victims) == 0 {
			if now.share() >= lowMark {
				return true
			}
			if !g.stuck { // once, not at every look
				g.log.Add(events.Event{Type: events.OOMStuck})
			}
			g.stuck = true
			return false
		}
		for _, victim := range victims {
			dying[victim.pid] = true
			g.kill(victim)
		}
		for waited := time.Duration(0); waited < effectWait && now.share() < highMark; waited += effectLook {
			time.Sleep(effectLook) // their memory comes back a little later
			now, _ = g.look(memory)
		}
	}
	return true
}

func (g *Guard) kill(victim candidate) {
	name := procfs.Name(victim.pid)
	if stat, ok := process.ReadStat(victim.pid); ok {
		g.table.MarkOOMKilled(victim.pid, stat.Session)
	}
	if syscall.Kill(victim.pid, syscall.SIGKILL) == nil {
		g.log.Add(events.Event{Type: events.OOMKill, PID: victim.pid, Process: name, RSSBytes: victim.resident})
	}
}
