package process

import (
	"errors"
	"slices"
	"sync"
	"time"

	"sandkeep/agent/internal/ring"
	"sandkeep/agent/internal/settings"
)

// How long and how many ended processes are kept.
const (
	MaxLive        = 4096
	MaxEnded       = 256 // of each kind
	keepEnded      = 30 * time.Second
	keepDetached   = 10 * time.Minute
	smallestBudget = 8 << 20
	largestBudget  = 64 << 20
	budgetOfMemory = 16 // one part in so many
)

// ErrTooMany says that MaxLive is reached.
var ErrTooMany = errors.New("too many processes")

// Table knows every process that clients started.
type Table struct {
	Reaper   *Reaper
	Budget   *ring.Budget
	settings *settings.Store
	onStart  func()

	mu       sync.Mutex
	starting int
	live     map[int]*Process
	ended    [2][]*Process // [0] ordinary, [1] detached; oldest first
}

// NewTable makes an empty table.
func NewTable(store *settings.Store) *Table {
	t := &Table{Reaper: NewReaper(), Budget: ring.NewBudget(largestBudget), settings: store, live: map[int]*Process{}}
	t.Budget.OnPressure(t.emptyOldest)
	return t
}

// OnStart sets what is told of every start.
func (t *Table) OnStart(told func()) { t.onStart = told }

// SetMemory sizes the rings' budget after the sandbox's memory.
func (t *Table) SetMemory(total int64) {
	t.Budget.SetLimit(min(max(total/budgetOfMemory, smallestBudget), largestBudget))
}

// Start runs spec and attaches a first reader before any output can be lost.
func (t *Table) Start(spec Spec) (*Process, *ring.Reader, error) {
	t.mu.Lock()
	if len(t.live)+t.starting >= MaxLive {
		t.mu.Unlock()
		return nil, nil, ErrTooMany
	}
	t.starting++
	t.mu.Unlock()
	output := ring.New(t.Budget)
	reader, _ := output.Attach(0)
	// Nobody may find it ended before it was live.
	registered := make(chan struct{})
	p, err := start(spec, t.settings.Get(), t.Reaper, output, func(p *Process) {
		go func() { <-registered; t.retire(p) }()
	})
	t.mu.Lock()
	t.starting--
	if err == nil {
		t.live[p.PID] = p
	}
	t.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	p.expireAfter(spec.Timeout)
	close(registered)
	if t.onStart != nil {
		t.onStart()
	}
	return p, reader, nil
}

func (t *Table) retire(p *Process) {
	kind, keep := 0, keepEnded
	if p.Spec.Detached {
		kind, keep = 1, keepDetached
	}
	t.mu.Lock()
	if t.live[p.PID] == p {
		delete(t.live, p.PID)
	}
	p.expiry = time.AfterFunc(keep, func() { t.forget(kind, p) })
	t.ended[kind] = append(t.ended[kind], p)
	var evicted *Process
	if len(t.ended[kind]) > MaxEnded {
		evicted = t.ended[kind][0]
		t.ended[kind] = slices.Delete(t.ended[kind], 0, 1)
	}
	t.mu.Unlock()
	if evicted != nil {
		evicted.expiry.Stop() // thousands of short commands must not leave as many timers
		evicted.Output.Abandon()
	}
}

func (t *Table) forget(kind int, p *Process) {
	t.mu.Lock()
	if index := slices.Index(t.ended[kind], p); index >= 0 {
		t.ended[kind] = slices.Delete(t.ended[kind], index, index+1)
	}
	t.mu.Unlock()
	p.Output.Abandon()
}

// emptyOldest frees one ended process's ring. It must not hold the table's lock while it locks a ring.
func (t *Table) emptyOldest() bool {
	t.mu.Lock()
	candidates := slices.Concat(t.ended[0], t.ended[1])
	t.mu.Unlock()
	for _, p := range candidates {
		if p.Output.Empty() {
			return true
		}
	}
	return false
}

// ByPID finds a process, a live one first.
func (t *Table) ByPID(pid int) *Process {
	return t.find(func(p *Process) bool { return p.PID == pid })
}

// ByTag finds the newest process with a tag, a live one first.
func (t *Table) ByTag(tag string) *Process {
	return t.find(func(p *Process) bool { return p.Spec.Tag == tag })
}

func (t *Table) find(matches func(*Process) bool) *Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found *Process
	newest := func(p *Process) {
		if matches(p) && (found == nil || p.StartedAt.After(found.StartedAt)) {
			found = p
		}
	}
	for _, p := range t.live {
		newest(p)
	}
	for kind := 0; found == nil && kind < len(t.ended); kind++ {
		for _, p := range t.ended[kind] {
			newest(p)
		}
	}
	return found
}

// List returns the live processes in the order they started, and those that ended if asked.
func (t *Table) List(includeEnded bool) []*Process {
	t.mu.Lock()
	all := make([]*Process, 0, len(t.live))
	for _, p := range t.live {
		all = append(all, p)
	}
	if includeEnded {
		all = append(append(all, t.ended[0]...), t.ended[1]...)
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b *Process) int { return a.StartedAt.Compare(b.StartedAt) })
	return all
}

// Live counts the living.
func (t *Table) Live() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.live)
}

// MarkOOMKilled notes a victim of the guard with the client's process it belongs to.
func (t *Table) MarkOOMKilled(pid, session int) {
	t.mu.Lock()
	p := t.live[pid]
	if p == nil {
		p = t.live[session]
	}
	t.mu.Unlock()
	if p != nil {
		p.MarkOOMKilled()
	}
}
