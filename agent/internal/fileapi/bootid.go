package fileapi

import (
	"crypto/rand"
	"fmt"
	"os"
)

const bootIDPath = "/proc/sys/kernel/random/boot_id"

// newBootID stands in for the kernel's where there is none (gVisor): random, new at every cold start, kept over memory
// snapshots because it lives in the agent.
func newBootID() string {
	if _, err := os.Stat(bootIDPath); err == nil {
		return ""
	}
	var id [16]byte
	_, _ = rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
