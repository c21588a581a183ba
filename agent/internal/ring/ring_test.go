package ring

import (
	"bytes"
	"fmt"
	"math/rand"
	"testing"
	"time"
)

func source(data []byte) func([]byte) (int, error) {
	return func(p []byte) (int, error) { return copy(p, data), nil }
}

// put writes all of data, as a pump does.
func put(t testing.TB, r *Ring, stream Stream, data []byte) {
	t.Helper()
	for len(data) > 0 {
		n, err := r.Fill(stream, source(data))
		if err == ErrFull {
			r.WaitForSpace(stream)
			continue
		}
		data = data[n:]
	}
}

type piece struct {
	stream Stream
	offset int64
	text   string
}

func takeAll(rd *Reader) (pieces []piece, dropped int64, ended bool) {
	dropped = rd.Missed
	for {
		taken := rd.Take(1<<30, func(s Stream, o int64, p []byte) { pieces = append(pieces, piece{s, o, string(p)}) })
		if taken.Bytes == 0 || taken.Ended {
			return pieces, dropped, taken.Ended
		}
	}
}

func TestOrderOffsetsAndReplay(t *testing.T) {
	r := New(NewBudget(1 << 30))
	for i, s := range []Stream{Stdout, Stdout, Stderr, Stdout} {
		put(t, r, s, []byte(fmt.Sprint(i)))
	}
	r.Close()
	rd, _ := r.Attach(0)
	pieces, dropped, ended := takeAll(rd)
	want := []piece{{Stdout, 0, "01"}, {Stderr, 2, "2"}, {Stdout, 3, "3"}}
	if fmt.Sprint(pieces) != fmt.Sprint(want) || dropped != 0 || !ended {
		t.Fatal(pieces, dropped, ended)
	}
	middle, _ := r.Attach(1)
	if pieces, _, _ := takeAll(middle); pieces[0] != (piece{Stdout, 1, "1"}) {
		t.Fatal(pieces)
	}
	if _, ok := r.Attach(5); ok {
		t.Fatal("attached beyond the end")
	}
	now, _ := r.Attach(-1)
	if pieces, _, ended := takeAll(now); len(pieces) != 0 || !ended {
		t.Fatal(pieces)
	}
}

func TestDropsOldestWithoutReaders(t *testing.T) {
	r := New(NewBudget(1 << 30))
	data := make([]byte, 3*Max+12345)
	rand.New(rand.NewSource(1)).Read(data)
	put(t, r, Stdout, data)
	r.Close()
	rd, _ := r.Attach(7)
	var got []byte
	pieces, dropped, ended := takeAll(rd)
	for _, p := range pieces {
		got = append(got, p.text...)
	}
	if want := int64(len(data) - Max - 7); dropped != want || !ended {
		t.Fatalf("dropped %d, want %d", dropped, want)
	}
	if !bytes.Equal(got, data[len(data)-Max:]) {
		t.Fatal("kept bytes differ")
	}
}

func TestReaderHoldsWriterBack(t *testing.T) {
	r := New(NewBudget(1 << 30))
	rd, _ := r.Attach(0)
	data := bytes.Repeat([]byte("x"), 5*Max)
	finished := make(chan struct{})
	go func() { put(t, r, Stdout, data); r.Close(); close(finished) }()
	select {
	case <-finished:
		t.Fatal("the writer was not held back")
	case <-time.After(50 * time.Millisecond):
	}
	if end := r.End(); end != Max {
		t.Fatalf("written %d", end)
	}
	total := 0
	for {
		taken := rd.Take(100_000, func(Stream, int64, []byte) {})
		total += taken.Bytes
		if taken.Ended {
			break
		}
		if taken.Bytes == 0 {
			<-rd.Ready()
		}
	}
	if total != len(data) {
		t.Fatal(total)
	}
}

func TestDetachFreesWriter(t *testing.T) {
	r := New(NewBudget(1 << 30))
	rd, _ := r.Attach(0)
	finished := make(chan struct{})
	go func() { put(t, r, Stdout, make([]byte, 3*Max)); close(finished) }()
	time.Sleep(10 * time.Millisecond)
	rd.Detach()
	select {
	case <-finished:
	case <-time.After(5 * time.Second):
		t.Fatal("still held back")
	}
}

func TestAlternatingStreamsAreBounded(t *testing.T) {
	r := New(NewBudget(1 << 30))
	for i := 0; i < 100_000; i++ {
		put(t, r, Stream(i%2), []byte{byte(i)})
	}
	if len(r.runs) > maxRuns {
		t.Fatal(len(r.runs))
	}
	r.Close()
	rd, _ := r.Attach(0)
	pieces, dropped, _ := takeAll(rd)
	if int(dropped)+len(pieces) != 100_000 || pieces[len(pieces)-1].offset != 99_999 {
		t.Fatal(dropped, len(pieces))
	}
}

func TestBudget(t *testing.T) {
	budget := NewBudget(Max)
	finished := New(budget)
	put(t, finished, Stdout, make([]byte, Max))
	finished.Close()
	budget.OnPressure(finished.Empty)
	live := New(budget)
	put(t, live, Stdout, make([]byte, Max))
	if finished.buffer != nil || len(live.buffer) < Max/4 {
		t.Fatal("the finished ring was not emptied for the live one")
	}
	other := New(budget)
	put(t, other, Stdout, make([]byte, Max))
	if used := budget.Used(); used > Max+smallest {
		t.Fatal(used)
	}
}

// Any interleaving of writes, growth and reads gives every reader the right bytes at the right offsets.
func TestRandomised(t *testing.T) {
	for seed := int64(0); seed < 30; seed++ {
		random := rand.New(rand.NewSource(seed))
		r := New(NewBudget(int64(random.Intn(2 * Max))))
		var written []byte
		rd, _ := r.Attach(0)
		check := func(limit int) {
			rd.Take(limit, func(_ Stream, offset int64, p []byte) {
				if !bytes.Equal(p, written[offset:offset+int64(len(p))]) {
					t.Fatalf("seed %d: wrong bytes at %d", seed, offset)
				}
			})
		}
		for i := 0; i < 500; i++ {
			chunk := make([]byte, random.Intn(20_000)+1)
			random.Read(chunk)
			n, err := r.Fill(Stream(random.Intn(3)), source(chunk))
			if err == ErrFull {
				check(random.Intn(3 * MaxPiece))
				continue
			}
			written = append(written, chunk[:n]...)
			if random.Intn(3) == 0 {
				check(random.Intn(MaxPiece))
			}
		}
		for rd.position < r.next {
			check(1 << 20)
		}
	}
}

func TestAbandonedMemoryComesBack(t *testing.T) {
	budget := NewBudget(Max)
	r := New(budget)
	put(t, r, Stdout, make([]byte, Max))
	r.Close()
	rd, _ := r.Attach(0)
	r.Abandon()
	if pieces, _, ended := takeAll(rd); len(pieces) == 0 || !ended {
		t.Fatal("taken away from its reader")
	}
	rd.Detach()
	if used := budget.Used(); used != 0 {
		t.Fatal(used)
	}
}
