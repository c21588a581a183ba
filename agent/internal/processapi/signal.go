package processapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"syscall"

	"sandkeep/agent/internal/connect"
)

type signalRequest struct {
	Process selector        `json:"process"`
	Signal  json.RawMessage `json:"signal"`
	Group   bool            `json:"group"`
	Tree    bool            `json:"tree"`
}

// The first two are E2B's; the rest is ours.
var signals = map[string]syscall.Signal{
	"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM,
	"INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
	"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "TSTP": syscall.SIGTSTP, "WINCH": syscall.SIGWINCH,
	"ALRM": syscall.SIGALRM, "ABRT": syscall.SIGABRT, "PIPE": syscall.SIGPIPE,
}

func (s *Service) sendSignal(_ *http.Request, in *signalRequest) (empty, error) {
	p, err := s.find(in.Process)
	if err != nil {
		return empty{}, err
	}
	number, err := signalNumber(in.Signal)
	if err != nil {
		return empty{}, err
	}
	if _, ended := p.Ended(); ended {
		return empty{}, connect.Errorf(connect.NotFound, "process with pid %d not found", p.PID)
	}
	if in.Tree {
		p.KillTree(number)
		return empty{}, nil
	}
	return empty{}, failure(p.Signal(number, in.Group))
}

func signalNumber(raw json.RawMessage) (syscall.Signal, error) {
	var name string
	if json.Unmarshal(raw, &name) == nil {
		if number, known := signals[strings.TrimPrefix(name, "SIGNAL_SIG")]; known {
			return number, nil
		}
	}
	var number connect.Integer
	if len(raw) > 0 && json.Unmarshal(raw, &number) == nil && number > 0 && number <= 64 {
		return syscall.Signal(number), nil
	}
	return 0, connect.Errorf(connect.InvalidArgument, "unknown signal %s", raw)
}
