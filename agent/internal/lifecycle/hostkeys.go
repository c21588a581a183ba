package lifecycle

import (
	"time"

	"sandkeep/agent/internal/process"
)

const (
	keygen         = "/usr/bin/ssh-keygen"
	keygenPatience = 7 * time.Second // the host waits 10 for the answer
)

// makeHostKeys has the sandbox's own ssh-keygen make those that are missing.
func makeHostKeys(reaper *process.Reaper) error {
	return runProgram(reaper, keygen, []string{"-A"}, nil, keygenPatience)
}
