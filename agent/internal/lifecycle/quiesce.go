package lifecycle

import (
	"net/http"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/gate"
)

const defaultQuiesce = 2 * time.Second

type quiesceRequest struct {
	DeadlineMs connect.Integer `json:"deadlineMs"`
	Event      string          `json:"event"`
	DiskOnly   bool            `json:"diskOnly"`
}

type quiesceResponse struct {
	Synced     bool     `json:"synced"`
	Unsavable  []holder `json:"unsavable"`
	Truncated  bool     `json:"truncated,omitempty"`
	Hooks      string   `json:"hooks,omitempty"`
	DurationMs float64  `json:"durationMs"`
}

// quiesce readies the sandbox for a snapshot, and tells what would make one of its memory fail if that is wanted.
func (s *Service) quiesce(w http.ResponseWriter, r *http.Request) {
	in := new(quiesceRequest)
	if err := connect.ReadJSON(w, r, in); err != nil {
		gate.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	begin := time.Now()
	deadline := time.Duration(in.DeadlineMs) * time.Millisecond
	if deadline <= 0 {
		deadline = defaultQuiesce
	}
	out := quiesceResponse{}
	if in.Event != "" { // hooks first: what they write is flushed with the rest
		half := begin.Add(deadline / 2)
		if err := runHooks(hooksQuiesce, []string{"SANDKEEP_EVENT=" + in.Event}, half, s.runHook); err != nil {
			out.Hooks = err.Error()
		}
	}
	synced := make(chan struct{})
	go func() {
		syncRoot()
		close(synced)
	}()
	if !in.DiskOnly {
		debug.FreeOSMemory() // what the agent does not need is not worth saving
		out.Unsavable, out.Truncated = unsavable(begin.Add(deadline))
	}
	timer := time.NewTimer(deadline - time.Since(begin))
	defer timer.Stop()
	select {
	case <-synced:
		out.Synced = true
	case <-timer.C:
	}
	out.DurationMs = float64(time.Since(begin).Microseconds()) / 1000
	connect.WriteJSON(w, http.StatusOK, out)
}

type thawRequest struct {
	DeadlineMs connect.Integer `json:"deadlineMs"`
	Event      string          `json:"event"`
}

type thawResponse struct {
	Hooks string `json:"hooks,omitempty"`
}

// thaw ends what the quiesce hooks began.
func (s *Service) thaw(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	in := new(thawRequest)
	if err := connect.ReadJSON(w, r, in); err != nil {
		gate.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	deadline := time.Duration(in.DeadlineMs) * time.Millisecond
	if deadline <= 0 {
		deadline = defaultQuiesce
	}
	out := thawResponse{}
	if err := runHooks(hooksThaw, []string{"SANDKEEP_EVENT=" + in.Event}, begin.Add(deadline), s.runHook); err != nil {
		out.Hooks = err.Error()
	}
	connect.WriteJSON(w, http.StatusOK, out)
}

// syncRoot writes back the root file system only: others are not part of a snapshot.
func syncRoot() {
	root, err := os.Open("/")
	if err != nil {
		return
	}
	defer root.Close()
	_, _, _ = syscall.Syscall(sysSyncfs, root.Fd(), 0, 0)
}
