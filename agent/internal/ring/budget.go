package ring

import "sync"

// Budget is the memory that all rings (and captures) share, so that many noisy processes cannot exhaust the sandbox.
type Budget struct {
	mu          sync.Mutex
	limit, used int64
	// reclaim frees memory that nobody is reading, or returns false. It is called with the growing ring locked, so it
	// may lock other rings only if those never grow again (rings of finished processes).
	reclaim func() bool
}

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// OnPressure sets what is asked for memory before a reservation is refused.
func (b *Budget) OnPressure(reclaim func() bool) { b.reclaim = reclaim }

// SetLimit changes the limit; memory in use stays in use.
func (b *Budget) SetLimit(limit int64) {
	b.mu.Lock()
	b.limit = limit
	b.mu.Unlock()
}

// Used is what is reserved now.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Reserve takes n bytes, or says that there are none.
func (b *Budget) Reserve(n int64) bool {
	for {
		b.mu.Lock()
		fits := b.used+n <= b.limit
		if fits {
			b.used += n
		}
		b.mu.Unlock()
		if fits {
			return true
		}
		if b.reclaim == nil || !b.reclaim() {
			return false
		}
	}
}

// Force takes n bytes without asking: the little that every ring needs to make progress.
func (b *Budget) Force(n int64) {
	b.mu.Lock()
	b.used += n
	b.mu.Unlock()
}

// Release gives n bytes back.
func (b *Budget) Release(n int64) { b.Force(-n) }
