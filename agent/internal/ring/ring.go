// Package ring keeps the newest output of one process: several streams in the order they were read, under one running
// byte offset, so that a client can come back and go on where it stopped. Attached readers hold the writer back when the
// slowest of them is a whole ring behind; without readers the oldest bytes are overwritten.
package ring

import (
	"errors"
	"sort"
	"sync"
)

// Stream says where bytes came from.
type Stream byte

// The streams of a process.
const (
	Stdout Stream = iota
	Stderr
	PTY
)

// Max is the size to which a ring grows.
const Max = 1 << 20

const (
	smallest = 4 << 10
	growth   = 4
	maxFill  = 64 << 10
	// Output that alternates between streams byte by byte must not cost more memory in marks than in bytes.
	maxRuns = 8192
)

// ErrFull is returned by Fill when a reader has to catch up first.
var ErrFull = errors.New("ring is full")

// run marks where a stretch of one stream begins.
type run struct {
	start  int64
	stream Stream
}

// Ring is safe for concurrent use.
type Ring struct {
	mu      sync.Mutex
	space   sync.Cond
	budget  *Budget
	buffer  []byte // its length is a power of two, or zero
	first   int64  // offset of the oldest byte kept
	next    int64  // offset of the next byte to come
	runs    []run
	readers map[*Reader]struct{}
	closed  bool
	// abandoned says that nobody will ask for this ring again, so its memory goes with the last reader.
	abandoned bool
}

// New makes an empty ring that draws its memory from budget.
func New(budget *Budget) *Ring {
	r := &Ring{budget: budget, readers: map[*Reader]struct{}{}}
	r.space.L = &r.mu
	return r
}

// Fill lets read put bytes of a stream straight into the ring; read must not block, since the ring is locked meanwhile.
// It returns what read returned, or ErrFull without calling it.
func (r *Ring) Fill(stream Stream, read func([]byte) (int, error)) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := r.room(stream)
	if room == 0 {
		return 0, ErrFull
	}
	at := int(r.next) & (len(r.buffer) - 1)
	n, err := read(r.buffer[at:min(at+min(room, maxFill), len(r.buffer))])
	if n <= 0 {
		return n, err
	}
	if len(r.runs) == 0 || r.runs[len(r.runs)-1].stream != stream {
		r.runs = append(r.runs, run{r.next, stream})
	}
	r.next += int64(n)
	if r.next-r.first > int64(len(r.buffer)) {
		r.forget(r.next - int64(len(r.buffer)))
	}
	for reader := range r.readers {
		reader.wake()
	}
	return n, err
}

// WaitForSpace blocks while a reader holds the ring full.
func (r *Ring) WaitForSpace(stream Stream) {
	r.mu.Lock()
	for !r.closed && r.room(stream) == 0 {
		r.space.Wait()
	}
	r.mu.Unlock()
}

// room is how many bytes may be written without losing any that a reader still needs. It grows the ring first, so that
// history is kept as long as memory allows, and forgets history only when it must.
func (r *Ring) room(stream Stream) int {
	if r.next-r.first == int64(len(r.buffer)) {
		r.grow()
	}
	needed := r.needed()
	if len(r.runs) >= maxRuns && r.runs[len(r.runs)-1].stream != stream {
		oldest := r.runs[maxRuns/4].start
		if oldest > needed {
			return 0
		}
		r.forget(oldest)
	}
	free := len(r.buffer) - int(r.next-r.first)
	if free > 0 {
		return free
	}
	return len(r.buffer) - int(r.next-needed)
}

// needed is the oldest offset that an attached reader has not taken yet; without readers, nothing is needed.
func (r *Ring) needed() int64 {
	oldest := r.next
	for reader := range r.readers {
		oldest = min(oldest, reader.position)
	}
	return oldest
}

func (r *Ring) grow() {
	size := max(smallest, len(r.buffer)*growth)
	if size > Max {
		return
	}
	if len(r.buffer) == 0 {
		r.budget.Force(int64(size))
	} else if !r.budget.Reserve(int64(size - len(r.buffer))) {
		return
	}
	bigger := make([]byte, size)
	for at := r.first; at < r.next; {
		piece := r.contiguous(at, r.next)
		copy(bigger[int(at)&(size-1):], piece) // cannot wrap: size is a multiple of the old length and at least 4 times it
		at += int64(len(piece))
	}
	r.buffer = bigger
}

// contiguous is the stretch of memory from offset from, up to offset to or the buffer's edge.
func (r *Ring) contiguous(from, to int64) []byte {
	at := int(from) & (len(r.buffer) - 1)
	return r.buffer[at:min(at+int(to-from), len(r.buffer))]
}

// forget drops everything before offset.
func (r *Ring) forget(offset int64) {
	r.first = offset
	drop := r.runAt(offset)
	if drop > 0 {
		r.runs = append(r.runs[:0], r.runs[drop:]...)
	}
	if len(r.runs) > 0 && r.runs[0].start < offset {
		r.runs[0].start = offset
	}
}

// runAt is the index of the run that holds offset.
func (r *Ring) runAt(offset int64) int {
	return max(0, sort.Search(len(r.runs), func(i int) bool { return r.runs[i].start > offset })-1)
}

// End is the offset after the last byte.
func (r *Ring) End() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// Close says that nothing more will come.
func (r *Ring) Close() {
	r.mu.Lock()
	r.closed = true
	for reader := range r.readers {
		reader.wake()
	}
	r.space.Broadcast()
	r.mu.Unlock()
}

// Empty gives the memory of a closed ring back, unless somebody is reading it. It tells whether there was any.
func (r *Ring) Empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.empty()
}

// Abandon is Empty as soon as the last reader has left.
func (r *Ring) Abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned = true
	r.empty()
}

func (r *Ring) empty() bool {
	if !r.closed || len(r.readers) > 0 || len(r.buffer) == 0 {
		return false
	}
	r.budget.Release(int64(len(r.buffer)))
	r.buffer, r.runs, r.first = nil, nil, r.next
	return true
}
