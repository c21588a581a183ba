package guard

import "time"

const (
	fastest = 15 * time.Millisecond
	slowest = 2 * time.Second
	// Alone, nothing can take memory before a process is started, which wakes the guard; this is for those that
	// come from outside.
	alone = 30 * time.Second
	// allocationRate is what a hog is assumed to take, in bytes per second; 0.9 GB/s was measured.
	allocationRate = 1 << 30
	smallHeadroom  = 256 << 20
)

// pace decides when to look next. Any wake-up costs about 1 ms of processor time in gVisor, however little is done
// then, so a hundred idle sandboxes must hardly wake at all.
type pace struct {
	calm time.Duration // grows while memory is steady
	last int64
}

// restart goes back to looking often.
func (p *pace) restart() { p.calm = 0 }

// next is how soon a hog could reach the low mark; and while nothing changes, more and more, up to how soon a hog could
// use up half the headroom outside, too.
func (p *pace) next(now state, lonely bool) time.Duration {
	if lonely {
		p.calm = 0
		return alone
	}
	soon := untilTaken(now.available - int64(lowMark*float64(now.total)))
	limit := untilTaken(now.available + max(smallHeadroom, now.total/4)/2)
	change := now.available - p.last
	p.last = now.available
	if now.share() < 2*highMark || change > now.total/64 || change < -now.total/64 {
		p.calm = soon
		return soon
	}
	p.calm = max(soon, min(p.calm*3/2, limit))
	return p.calm
}

func untilTaken(bytes int64) time.Duration {
	return max(fastest, min(time.Duration(float64(bytes)/allocationRate*float64(time.Second)), slowest))
}
