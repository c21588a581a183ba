package process

import (
	"syscall"
	"time"
)

const gracePeriod = 3 * time.Second

// Shutdown asks every process to end, waits a little, and kills what is left.
func (t *Table) Shutdown(number syscall.Signal) {
	for _, p := range t.List(false) {
		p.KillTree(number)
	}
	late := time.After(gracePeriod)
	for _, p := range t.List(false) {
		select {
		case <-p.Done():
		case <-late:
			p.KillTree(syscall.SIGKILL)
			late = time.After(0)
		}
	}
}
