package guard

import (
	"os"
	"slices"

	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/procfs"
)

type candidate struct {
	pid      int
	resident int64
}

// candidates are all processes but pid 1, the agent, and those already killed.
func candidates(dying map[int]bool) []candidate {
	self := os.Getpid()
	var found []candidate
	for _, pid := range process.PIDs() {
		if pid == 1 || pid == self || dying[pid] {
			continue
		}
		if resident := procfs.ResidentBytes(pid); resident > 0 {
			found = append(found, candidate{pid, resident})
		}
	}
	return found
}

// choose takes the largest until they make up for what is missing. Several at once, because hogs that grow together
// are faster than one kill at a time.
func choose(from []candidate, missing, smallest int64) []candidate {
	slices.SortFunc(from, func(a, b candidate) int { return int(min(1, max(-1, b.resident-a.resident))) })
	for i, c := range from {
		if c.resident < smallest || missing <= 0 {
			return from[:i]
		}
		missing -= c.resident
	}
	return from
}

// lonely says that there is no process but ours. That includes those that clients did not start.
func lonely() bool {
	self := os.Getpid()
	for _, pid := range process.PIDs() {
		if pid != 1 && pid != self {
			return false
		}
	}
	return true
}
