package processapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/caller"
	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/settings"
)

// Service answers process RPCs.
type Service struct {
	Table    *process.Table
	Settings *settings.Store
}

// Register adds the routes.
func (s *Service) Register(mux *http.ServeMux) {
	const service = "POST /process.Process/"
	mux.HandleFunc(service+"List", connect.Unary(s.list))
	mux.HandleFunc(service+"Start", connect.ServerStream(s.start))
	mux.HandleFunc(service+"Connect", connect.ServerStream(s.connect))
	mux.HandleFunc(service+"Update", connect.Unary(s.update))
	mux.HandleFunc(service+"SendInput", connect.Unary(s.sendInput))
	mux.HandleFunc(service+"StreamInput", connect.ClientStream(s.streamInput))
	mux.HandleFunc(service+"SendSignal", connect.Unary(s.sendSignal))
	mux.HandleFunc(service+"CloseStdin", connect.Unary(s.closeStdin))
	mux.HandleFunc("POST /exec", s.exec)
}

func (s *Service) find(wanted selector) (*process.Process, error) {
	switch {
	case wanted.PID != nil:
		if found := s.Table.ByPID(int(*wanted.PID)); found != nil {
			return found, nil
		}
		return nil, connect.Errorf(connect.NotFound, "process with pid %d not found", *wanted.PID)
	case wanted.Tag != nil:
		if found := s.Table.ByTag(*wanted.Tag); found != nil {
			return found, nil
		}
		return nil, connect.Errorf(connect.NotFound, "process with tag %s not found", *wanted.Tag)
	}
	return nil, connect.Errorf(connect.InvalidArgument, "process must be selected by pid or tag")
}

// failure gives the process package's errors their codes.
func failure(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, process.ErrRefused):
		return connect.Errorf(connect.InvalidArgument, "%v", err)
	case errors.Is(err, process.ErrTooMany):
		return connect.Errorf(connect.ResourceExhausted, "%v", err)
	case errors.Is(err, process.ErrEnded):
		return connect.Errorf(connect.NotFound, "%v", err)
	case errors.Is(err, process.ErrNoInput), errors.Is(err, process.ErrNoTerminal),
		errors.Is(err, process.ErrInputClosed), errors.Is(err, process.ErrTerminal):
		return connect.Errorf(connect.FailedPrecondition, "%v", err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return connect.Errorf(connect.DeadlineExceeded, "the process did not read its input in time")
	}
	return err
}

func (s *Service) list(_ *http.Request, in *listRequest) (listResponse, error) {
	all := s.Table.List(in.IncludeEnded)
	out := listResponse{Processes: make([]listed, 0, len(all))}
	for _, p := range all {
		entry := listed{PID: p.PID, Tag: p.Spec.Tag,
			Config: config{Command: p.Spec.Command, Args: p.Spec.Args, Envs: p.Envs, Dir: p.Spec.Dir}}
		if in.IncludeEnded {
			offset, started := p.Output.End(), p.StartedAt.UTC()
			entry.Detached, entry.Offset, entry.StartedAt = &p.Spec.Detached, &offset, &started
			if result, ended := p.Ended(); ended {
				at := result.At.UTC()
				entry.Ended = endingOf(result)
				entry.Ended.At, entry.Ended.TimedOut = &at, result.TimedOut
			}
		}
		out.Processes = append(out.Processes, entry)
	}
	return out, nil
}

func (s *Service) update(_ *http.Request, in *updateRequest) (empty, error) {
	p, err := s.find(in.Process)
	if err != nil || in.PTY == nil || in.PTY.Size == nil {
		return empty{}, err
	}
	return empty{}, failure(p.Resize(*in.PTY.toSize()))
}

func (s *Service) sendInput(r *http.Request, in *inputRequest) (empty, error) {
	p, err := s.find(in.Process)
	if err != nil {
		return empty{}, err
	}
	return empty{}, write(r.Context(), p, in.Input)
}

func (s *Service) streamInput(r *http.Request, next func() (*streamInputRequest, error)) (empty, error) {
	var p *process.Process
	for {
		in, err := next()
		switch {
		case err == io.EOF:
			return empty{}, nil
		case err != nil:
			return empty{}, err
		case in.Start != nil:
			if p, err = s.find(in.Start.Process); err != nil {
				return empty{}, err
			}
		case in.Data != nil && p == nil:
			return empty{}, connect.Errorf(connect.InvalidArgument, "the first message must be start")
		case in.Data != nil:
			if err := write(r.Context(), p, in.Data.Input); err != nil {
				return empty{}, err
			}
		}
	}
}

func write(ctx context.Context, p *process.Process, input payload) error {
	switch {
	case input.Stdin != nil:
		return failure(p.Write(ctx, *input.Stdin, false))
	case input.PTY != nil:
		return failure(p.Write(ctx, *input.PTY, true))
	}
	return connect.Errorf(connect.InvalidArgument, "input must have stdin or pty")
}

func (s *Service) closeStdin(r *http.Request, in *closeRequest) (empty, error) {
	p, err := s.find(in.Process)
	if err != nil {
		return empty{}, err
	}
	return empty{}, failure(p.CloseInput(r.Context()))
}

// specOf turns a request into what the table runs.
func specOf(c *config, user account.Account) process.Spec {
	return process.Spec{Command: c.Command, Args: c.Args, Envs: c.Envs, Dir: c.Dir, User: user}
}

func (s *Service) start(r *http.Request, in *startRequest, out *connect.Stream) error {
	if in.Process == nil {
		return connect.Errorf(connect.InvalidArgument, "process is missing")
	}
	user, err := caller.FromBasic(r, s.Settings.Get())
	if err != nil {
		return err
	}
	spec := specOf(in.Process, user)
	spec.Terminal, spec.Tag, spec.Stdin, spec.Detached = in.PTY.toSize(), in.Tag, in.Stdin, in.Detached
	spec.Timeout = time.Duration(max(0, in.TimeoutMs)) * time.Millisecond
	spec.Leave = in.Offset != nil || in.Detached
	follower := &follower{out: out, offsets: spec.Leave, keepalive: connect.Keepalive(r)}
	if deadline := connect.Timeout(r); in.Detached {
		follower.deadline = deadline
	} else if deadline > 0 && (spec.Timeout == 0 || deadline < spec.Timeout) {
		spec.Timeout = deadline
	}
	p, reader, err := s.Table.Start(spec)
	if err != nil {
		return failure(err)
	}
	defer reader.Detach()
	return follower.follow(r.Context(), p, reader)
}

func (s *Service) connect(r *http.Request, in *connectRequest, out *connect.Stream) error {
	p, err := s.find(in.Process)
	if err != nil {
		return err
	}
	from := int64(-1)
	if in.Offset != nil {
		from = max(0, int64(*in.Offset))
	}
	reader, ok := p.Output.Attach(from)
	if !ok {
		return connect.Errorf(connect.OutOfRange, "offset %d is beyond the end of the output, %d", from, p.Output.End())
	}
	defer reader.Detach()
	follower := &follower{out: out, offsets: in.Offset != nil, keepalive: connect.Keepalive(r), deadline: connect.Timeout(r)}
	return follower.follow(r.Context(), p, reader)
}
