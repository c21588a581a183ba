// Package metrics answers GET /metrics.
package metrics

import (
	"bytes"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/procfs"
)

// Service reads the numbers when asked; nothing runs in between.
type Service struct {
	Table *process.Table

	mu   sync.Mutex
	last usage
}

type usage struct{ busy, total float64 }

type report struct {
	Timestamp    int64   `json:"ts"`
	CPUCount     int     `json:"cpu_count"`
	CPUUsed      float64 `json:"cpu_used_pct"`
	MemTotal     int64   `json:"mem_total"`
	MemUsed      int64   `json:"mem_used"`
	MemCache     int64   `json:"mem_cache"`
	MemTotalMiB  int64   `json:"mem_total_mib"`
	MemUsedMiB   int64   `json:"mem_used_mib"`
	DiskUsed     int64   `json:"disk_used"`
	DiskTotal    int64   `json:"disk_total"`
	ProcessCount int     `json:"process_count"`
	AgentRSS     int64   `json:"agent_rss"`
	RingBytes    int64   `json:"ring_bytes"`
}

// Register adds the route.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		connect.WriteJSON(w, http.StatusOK, s.read())
	})
}

func (s *Service) read() report {
	out := report{Timestamp: time.Now().Unix(), CPUCount: runtime.NumCPU(), CPUUsed: s.cpu(),
		ProcessCount: len(process.PIDs()), AgentRSS: procfs.ResidentBytes(os.Getpid()), RingBytes: s.Table.Budget.Used()}
	if reader, err := procfs.NewMemoryReader(); err == nil {
		memory, _ := reader.Read()
		reader.Close()
		out.MemTotal, out.MemCache = memory.Total, memory.Cached
		out.MemUsed = memory.Total - memory.Available
		out.MemTotalMiB, out.MemUsedMiB = out.MemTotal>>20, out.MemUsed>>20
	}
	var disk syscall.Statfs_t
	if syscall.Statfs("/", &disk) == nil {
		out.DiskTotal = int64(disk.Blocks) * int64(disk.Bsize)
		out.DiskUsed = out.DiskTotal - int64(disk.Bavail)*int64(disk.Bsize)
	}
	return out
}

// cpu is the mean since the previous call, in percent of all processors together.
func (s *Service) cpu() float64 {
	now := readUsage()
	s.mu.Lock()
	defer s.mu.Unlock()
	busy, total := now.busy-s.last.busy, now.total-s.last.total
	s.last = now
	if total <= 0 || busy < 0 {
		return 0
	}
	return float64(int64(1000*busy/total)) / 10
}

func readUsage() usage {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return usage{}
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	var now usage
	for i, raw := range bytes.Fields(line) {
		value, err := strconv.ParseFloat(string(raw), 64)
		if err != nil || i > 8 { // guest time is part of user time
			continue
		}
		now.total += value
		if i != 4 && i != 5 { // idle, waiting for disks
			now.busy += value
		}
	}
	return now
}
