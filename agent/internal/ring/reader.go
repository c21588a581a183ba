package ring

// MaxPiece is the most that Take hands out at a time.
const MaxPiece = 32 << 10

// Reader is one client's place in a ring. Not safe for concurrent use, other than Ready.
type Reader struct {
	// Missed is how many bytes before Begin were asked for but had been overwritten. Once attached, nothing is missed.
	Missed int64
	Begin  int64

	ring     *Ring
	position int64
	ready    chan struct{}
}

// Attach starts reading at offset; a negative one means from now on. It returns false if the offset lies beyond the end.
func (r *Ring) Attach(offset int64) (*Reader, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset < 0 {
		offset = r.next
	}
	if offset > r.next {
		return nil, false
	}
	begin := max(offset, r.first)
	reader := &Reader{Missed: begin - offset, Begin: begin, ring: r, position: begin, ready: make(chan struct{}, 1)}
	r.readers[reader] = struct{}{}
	return reader, true
}

// Ready yields after something has changed since the last Take.
func (rd *Reader) Ready() <-chan struct{} { return rd.ready }

func (rd *Reader) wake() {
	select {
	case rd.ready <- struct{}{}:
	default:
	}
}

// Taken is what a Take found.
type Taken struct {
	Bytes int
	Ended bool // the ring is closed and everything was taken
}

// Take hands out up to limit bytes in pieces of one stream each. The pieces are the ring's own memory, valid only
// during emit, which must be quick.
func (rd *Reader) Take(limit int, emit func(stream Stream, offset int64, piece []byte)) Taken {
	r := rd.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	var taken Taken
	for index := r.runAt(rd.position); rd.position < r.next && taken.Bytes < limit; {
		end := r.next
		if index+1 < len(r.runs) {
			end = r.runs[index+1].start
		}
		if rd.position >= end {
			index++
			continue
		}
		piece := r.contiguous(rd.position, min(end, rd.position+int64(min(MaxPiece, limit-taken.Bytes))))
		emit(r.runs[index].stream, rd.position, piece)
		rd.position += int64(len(piece))
		taken.Bytes += len(piece)
	}
	taken.Ended = r.closed && rd.position == r.next
	if taken.Bytes > 0 {
		r.space.Broadcast()
	}
	return taken
}

// Detach stops reading; the process goes on.
func (rd *Reader) Detach() {
	rd.ring.mu.Lock()
	delete(rd.ring.readers, rd)
	rd.ring.space.Broadcast()
	if rd.ring.abandoned {
		rd.ring.empty()
	}
	rd.ring.mu.Unlock()
}
