// Package processapi is E2B's process.Process service and our /exec, over the process table.
package processapi

import (
	"time"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/process"
)

type empty struct{}

type selector struct {
	PID *connect.Integer `json:"pid"`
	Tag *string          `json:"tag"`
}

type size struct {
	Columns connect.Integer `json:"cols"`
	Rows    connect.Integer `json:"rows"`
}

type terminal struct {
	Size *size `json:"size"`
}

func (t *terminal) toSize() *process.Size {
	if t == nil {
		return nil
	}
	if t.Size == nil {
		return &process.Size{Columns: 80, Rows: 24}
	}
	return &process.Size{Columns: clamp(t.Size.Columns), Rows: clamp(t.Size.Rows)}
}

func clamp(value connect.Integer) uint16 { return uint16(max(0, min(value, 65535))) }

type config struct {
	Command string            `json:"cmd"`
	Args    []string          `json:"args,omitempty"`
	Envs    map[string]string `json:"envs,omitempty"`
	Dir     string            `json:"cwd,omitempty"`
}

type startRequest struct {
	Process   *config          `json:"process"`
	PTY       *terminal        `json:"pty"`
	Tag       string           `json:"tag"`
	Stdin     bool             `json:"stdin"`
	Detached  bool             `json:"detached"`
	Offset    *connect.Integer `json:"offset"`
	TimeoutMs connect.Integer  `json:"timeoutMs"`
}

type connectRequest struct {
	Process selector         `json:"process"`
	Offset  *connect.Integer `json:"offset"`
}

type updateRequest struct {
	Process selector  `json:"process"`
	PTY     *terminal `json:"pty"`
}

type payload struct {
	Stdin *connect.Bytes `json:"stdin"`
	PTY   *connect.Bytes `json:"pty"`
}

type inputRequest struct {
	Process selector `json:"process"`
	Input   payload  `json:"input"`
}

type streamInputRequest struct {
	Start *struct {
		Process selector `json:"process"`
	} `json:"start"`
	Data *struct {
		Input payload `json:"input"`
	} `json:"data"`
}

type closeRequest struct {
	Process selector `json:"process"`
}

type listRequest struct {
	IncludeEnded bool `json:"includeEnded"`
}

type listResponse struct {
	Processes []listed `json:"processes"`
}

type listed struct {
	Config    config     `json:"config"`
	PID       int        `json:"pid"`
	Tag       string     `json:"tag,omitempty"`
	Detached  *bool      `json:"detached,omitempty"`
	Offset    *int64     `json:"offset,omitempty"`
	StartedAt *time.Time `json:"startedAt,omitempty"`
	Ended     *ending    `json:"ended,omitempty"`
}

// ending is an end event; E2B's clients want its first three fields always.
type ending struct {
	ExitCode  int        `json:"exitCode"`
	Exited    bool       `json:"exited"`
	Status    string     `json:"status"`
	Error     string     `json:"error,omitempty"`
	Signal    int        `json:"signal,omitempty"`
	OOMKilled bool       `json:"oomKilled,omitempty"`
	TimedOut  bool       `json:"timedOut,omitempty"`
	At        *time.Time `json:"at,omitempty"`
}

func endingOf(result process.Result) *ending {
	return &ending{ExitCode: result.ExitCode, Exited: result.Exited, Status: result.Status, Error: result.Error(),
		Signal: result.Signal, OOMKilled: result.OOMKilled}
}
