package guard

import "time"

// pace decides when to look next: by how soon a hog could reach the low mark, and less and less often while nothing
// changes.
type pace struct {
	calm time.Duration // grows while memory is steady
	last int64
}

// restart goes back to looking often.
func (p *pace) restart() { p.calm = 0 }

func (p *pace) next(now state, busy bool) time.Duration {
	slowest := slowestIdle
	if busy {
		slowest = slowestBusy
	}
	reserve := now.available - int64(lowMark*float64(now.total))
	soon := time.Duration(float64(reserve) / allocationRate * float64(time.Second))
	soon = max(fastest, min(soon, slowest))
	change := now.available - p.last
	p.last = now.available
	if change > now.total/64 || change < -now.total/64 {
		p.calm = soon
		return soon
	}
	p.calm = max(soon, min(p.calm*3/2, slowest))
	return p.calm
}
