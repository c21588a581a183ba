package lifecycle

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/gate"
	"sandkeep/agent/internal/guard"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/procfs"
	"sandkeep/agent/internal/settings"
)

// Service answers /init, /quiesce, /thaw, /resume and /envs, one at a time.
type Service struct {
	Gate     *gate.Gate
	Settings *settings.Store
	Table    *process.Table
	Guard    *guard.Guard
	// CloseOthers closes every client connection but the request's own.
	CloseOthers func(*http.Request)

	mu    sync.Mutex
	guard bool
}

// Register adds the routes.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST /init", s.init)
	mux.HandleFunc("POST /quiesce", s.quiesce)
	mux.HandleFunc("POST /thaw", s.thaw)
	mux.HandleFunc("POST /resume", s.resume)
	mux.HandleFunc("GET /envs", func(w http.ResponseWriter, _ *http.Request) {
		envs := s.Settings.Get().EnvVars
		if envs == nil {
			envs = map[string]string{}
		}
		connect.WriteJSON(w, http.StatusOK, envs)
	})
}

type initRequest struct {
	AccessToken      *string            `json:"accessToken"`
	EnvVars          *map[string]string `json:"envVars"`
	DefaultUser      *string            `json:"defaultUser"`
	DefaultWorkdir   *string            `json:"defaultWorkdir"`
	Timestamp        moment             `json:"timestamp"`
	Hostname         *string            `json:"hostname"`
	SandboxID        *string            `json:"sandboxId"`
	DNS              *[]string          `json:"dns"`
	CABundle         *string            `json:"caBundle"`
	MemoryLimitBytes *connect.Integer   `json:"memoryLimitBytes"`
	OOMGuard         *bool              `json:"oomGuard"`
	NewIdentity      bool               `json:"newIdentity"`
	Generation       string             `json:"generation"`
	Identity         identity           `json:"identity"`
}

type initResponse struct {
	SkewSeconds float64  `json:"skewSeconds"`
	Warnings    []string `json:"warnings"`
}

// report gathers what went wrong without stopping.
type report []string

func (r *report) note(err error) {
	if err != nil {
		*r = append(*r, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

func (s *Service) init(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	in := new(initRequest)
	if err := connect.ReadJSON(w, r, in); err != nil {
		gate.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The gate let this in because there was no token. If two came at once, the second one must know it by now.
	if s.Gate.HasToken() && !s.Gate.Matches(r.Header.Get(gate.TokenHeader)) {
		gate.WriteError(w, http.StatusUnauthorized, gate.Refusal)
		return
	}
	if in.AccessToken != nil || !s.Gate.HasToken() {
		token := ""
		if in.AccessToken != nil {
			token = *in.AccessToken
		}
		if err := s.Gate.SetToken(token); err != nil {
			gate.WriteError(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	if !in.Timestamp.IsZero() {
		in.Timestamp.Time = in.Timestamp.Add(time.Since(arrived)) // waiting for our turn is not skew
	}
	if in.NewIdentity {
		if err := s.identify(in.Identity); err != nil {
			gate.WriteError(w, http.StatusInternalServerError, "identity: "+err.Error())
			return
		}
	}
	out := s.apply(in)
	if err := s.firstMoment(in, arrived, &out); err != nil {
		gate.WriteError(w, http.StatusInternalServerError, err.Error())
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		connect.WriteJSON(w, http.StatusOK, out)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// firstMoment writes the generation down and, in a fork, lets the sandbox's hooks run.
func (s *Service) firstMoment(in *initRequest, arrived time.Time, out *initResponse) error {
	if in.Generation == "" {
		return nil
	}
	err := placeGeneration(in.Generation)
	if !in.NewIdentity {
		problems := report(out.Warnings)
		problems.note(err) // a full disk keeps nobody from starting
		out.Warnings = problems
		return nil
	}
	if err != nil {
		return errors.New("generation: " + err.Error())
	}
	if err := s.resumeHooks("fork", in.Generation, arrived, 0); err != nil {
		return errors.New("hooks: " + err.Error())
	}
	return nil
}

func (s *Service) apply(in *initRequest) initResponse {
	problems := report{}
	skew, err := adjustClock(in.Timestamp)
	problems.note(err)
	next := *s.Settings.Get()
	set(&next.EnvVars, in.EnvVars)
	set(&next.DefaultUser, in.DefaultUser)
	set(&next.DefaultWorkdir, in.DefaultWorkdir)
	set(&next.SandboxID, in.SandboxID)
	if in.MemoryLimitBytes != nil {
		next.MemoryLimitBytes = int64(*in.MemoryLimitBytes)
	}
	s.Settings.Set(&next)
	if in.Hostname != nil && *in.Hostname != "" {
		problems.note(setHostname(*in.Hostname))
	}
	if in.DNS != nil && len(*in.DNS) > 0 {
		problems.note(placeResolvers(*in.DNS))
	}
	if in.CABundle != nil {
		problems.note(placeCertificates(*in.CABundle))
	}
	if in.SandboxID != nil {
		problems.note(placeSandboxID(*in.SandboxID))
	}
	problems.note(placeMachineID())
	set(&s.guard, in.OOMGuard)
	if in.OOMGuard != nil || in.MemoryLimitBytes != nil {
		s.Guard.Set(s.guard, next.MemoryLimitBytes)
	}
	s.Table.SetMemory(memoryOf(next.MemoryLimitBytes))
	return initResponse{skew, problems}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func memoryOf(limit int64) int64 {
	if limit > 0 {
		return limit
	}
	reader, err := procfs.NewMemoryReader()
	if err != nil {
		return 0
	}
	defer reader.Close()
	now, _ := reader.Read()
	return now.Total
}
