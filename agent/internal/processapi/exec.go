package processapi

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"sandkeep/agent/internal/caller"
	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/ring"
)

const (
	defaultCapture = 8 << 20
	maxCapture     = 64 << 20
)

type execRequest struct {
	config
	User           string          `json:"user"`
	Stdin          *connect.Bytes  `json:"stdin"`
	TimeoutMs      connect.Integer `json:"timeoutMs"`
	MaxOutputBytes connect.Integer `json:"maxOutputBytes"`
}

// exec runs a command and answers once, when it has ended: one round trip for what most calls are.
func (s *Service) exec(w http.ResponseWriter, r *http.Request) {
	in := new(execRequest)
	if err := connect.ReadJSON(w, r, in); err != nil {
		connect.WriteError(w, err)
		return
	}
	if in.User == "" {
		in.User, _, _ = r.BasicAuth()
	}
	user, err := caller.Named(in.User, s.Settings.Get())
	if err != nil {
		connect.WriteError(w, err)
		return
	}
	spec := specOf(&in.config, user)
	spec.Stdin, spec.Leave = in.Stdin != nil, true
	spec.Timeout = time.Duration(max(0, in.TimeoutMs)) * time.Millisecond
	p, reader, err := s.Table.Start(spec)
	if err != nil {
		connect.WriteError(w, failure(err))
		return
	}
	defer reader.Detach()
	if in.Stdin != nil {
		go func() {
			_ = p.Write(r.Context(), *in.Stdin, false)
			_ = p.CloseInput(r.Context())
		}()
	}
	captured := newCapture(s.Table.Budget, int(in.MaxOutputBytes))
	defer captured.release()
	for !reader.Take(ring.Max, captured.add).Ended {
		select {
		case <-reader.Ready():
		case <-r.Context().Done():
			return
		}
	}
	result, _ := p.Ended()
	writeExec(w, p, result, captured)
}

// capture collects output up to a limit per stream and within the memory that all rings share.
type capture struct {
	budget    *ring.Budget
	limit     int
	reserved  int64
	streams   [2][]byte
	truncated bool
}

func newCapture(budget *ring.Budget, limit int) *capture {
	if limit <= 0 {
		limit = defaultCapture
	}
	return &capture{budget: budget, limit: min(limit, maxCapture)}
}

func (c *capture) add(stream ring.Stream, _ int64, piece []byte) {
	kept := &c.streams[stream]
	if over := len(*kept) + len(piece) - c.limit; over > 0 {
		piece, c.truncated = piece[:len(piece)-min(over, len(piece))], true
	}
	if grown := len(*kept) + len(piece); grown > cap(*kept) {
		capacity := min(max(grown, 2*cap(*kept), 4096), c.limit)
		if more := int64(capacity - cap(*kept)); !c.budget.Reserve(more) {
			c.truncated = true
			return
		} else {
			c.reserved += more
		}
		bigger := make([]byte, len(*kept), capacity)
		copy(bigger, *kept)
		*kept = bigger
	}
	*kept = append(*kept, piece...)
}

func (c *capture) release() { c.budget.Release(c.reserved) }

// writeExec encodes output while it sends it: base64 of both streams at once could double the memory.
func writeExec(w http.ResponseWriter, p *process.Process, result process.Result, captured *capture) {
	type tail struct {
		ending
		Truncated  bool    `json:"truncated"`
		OOMKilled  bool    `json:"oomKilled"`
		TimedOut   bool    `json:"timedOut"`
		DurationMs float64 `json:"durationMs"`
	}
	rest, err := json.Marshal(tail{ending: *endingOf(result), Truncated: captured.truncated, OOMKilled: result.OOMKilled,
		TimedOut: result.TimedOut, DurationMs: float64(result.At.Sub(p.StartedAt).Microseconds()) / 1000})
	if err != nil {
		connect.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriter(w)
	_, _ = out.WriteString(`{"pid":` + strconv.Itoa(p.PID))
	for index, name := range []string{"stdout", "stderr"} {
		_, _ = out.WriteString(`,"` + name + `":"`)
		encoder := base64.NewEncoder(base64.StdEncoding, out)
		_, _ = encoder.Write(captured.streams[index])
		_ = encoder.Close()
		_ = out.WriteByte('"')
	}
	_ = out.WriteByte(',')
	_, _ = out.Write(rest[1:])
	_ = out.Flush()
}
