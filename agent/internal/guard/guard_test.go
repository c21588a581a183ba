package guard

import (
	"testing"
	"time"
)

const mb = 1 << 20

func TestChoose(t *testing.T) {
	all := []candidate{{2, 10 * mb}, {3, 100 * mb}, {4, 50 * mb}, {5, mb}}
	for missing, want := range map[int64]int{0: 0, 1: 1, 100 * mb: 1, 120 * mb: 2, 155 * mb: 3, 900 * mb: 3} {
		got := choose(append([]candidate{}, all...), missing, 5*mb)
		if len(got) != want || want > 0 && got[0].pid != 3 {
			t.Errorf("%d: %v", missing, got)
		}
	}
}

func TestPace(t *testing.T) {
	p := &pace{}
	idle := state{256 * mb, 230 * mb}
	first := p.next(idle, false)
	if first > 250*time.Millisecond {
		t.Fatal(first)
	}
	for range 20 {
		p.next(idle, false)
	}
	if got := p.next(idle, false); got <= first || got > 400*time.Millisecond {
		t.Fatal(got)
	}
	if got := p.next(state{256 * mb, 200 * mb}, false); got > 200*time.Millisecond {
		t.Fatalf("memory went away, and the next look is in %v", got)
	}
	if got := p.next(state{256 * mb, 30 * mb}, false); got != fastest {
		t.Fatal(got)
	}
	large := state{8 << 30, 7 << 30}
	for range 20 {
		p.next(large, false)
	}
	if got := p.next(large, false); got != slowest {
		t.Fatal(got)
	}
	if got := p.next(idle, true); got != alone {
		t.Fatal(got)
	}
	if got := p.next(idle, false); got > 250*time.Millisecond {
		t.Fatal(got)
	}
}
