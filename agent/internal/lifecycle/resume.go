package lifecycle

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"path/filepath"
	"time"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/gate"
)

type resumeRequest struct {
	Timestamp  moment          `json:"timestamp"`
	Hostname   string          `json:"hostname"`
	Generation string          `json:"generation"`
	Event      string          `json:"event"`
	DeadlineMs connect.Integer `json:"deadlineMs"`
	Become     *becoming       `json:"become"`
}

// becoming is sent to a memory that is a copy of another sandbox's.
type becoming struct {
	SandboxID   string            `json:"sandboxId"`
	AccessToken string            `json:"accessToken"`
	EnvVars     map[string]string `json:"envVars"`
	// Identity: of the sandbox that this memory becomes; without it, a new one is made.
	Identity identity `json:"identity"`
}

type resumeResponse struct {
	SkewSeconds float64  `json:"skewSeconds"`
	Processes   int      `json:"processes"`
	Generation  string   `json:"generation"`
	SandboxID   string   `json:"sandboxId"`
	Draw        string   `json:"draw"` // of the kernel's random numbers: of two copies it must not be the same
	Warnings    []string `json:"warnings"`
}

const defaultHooks = 5 * time.Second

// resume is the first call after a memory restore. Clients of before the save are gone, though their connections may
// look alive from here. User processes run already, but no traffic passes until this is answered.
func (s *Service) resume(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	in := new(resumeRequest)
	if err := connect.ReadJSON(w, r, in); err != nil {
		gate.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.CloseOthers(r)
	problems := report{}
	if in.Hostname != "" {
		problems.note(setHostname(in.Hostname))
	}
	skew, err := adjustClock(in.Timestamp)
	problems.note(err)
	if in.Become != nil {
		if err := s.become(in.Become); err != nil {
			gate.WriteError(w, http.StatusInternalServerError, "identity: "+err.Error())
			return
		}
	}
	if in.Generation != "" {
		err := placeGeneration(in.Generation)
		if err != nil && in.Become != nil { // a twin must be told; to another one a full disk does no harm
			gate.WriteError(w, http.StatusInternalServerError, "generation: "+err.Error())
			return
		}
		problems.note(err)
	}
	s.Guard.Wake()
	s.Table.Reaper.Nudge()
	if in.Event != "" {
		if err := s.resumeHooks(in.Event, in.Generation, arrived, in.DeadlineMs); err != nil {
			gate.WriteError(w, http.StatusInternalServerError, "hooks: "+err.Error())
			return
		}
	}
	var draw [16]byte
	_, _ = rand.Read(draw[:])
	connect.WriteJSON(w, http.StatusOK, resumeResponse{
		skew, s.Table.Live(), in.Generation, s.Settings.Get().SandboxID, hex.EncodeToString(draw[:]), problems,
	})
}

// become makes of a copy a sandbox of its own. All of it is done, or the call fails and the copy is thrown away.
func (s *Service) become(in *becoming) error {
	if err := s.identify(in.Identity); err != nil {
		return err
	}
	next := *s.Settings.Get()
	next.SandboxID = in.SandboxID
	next.EnvVars = withID(in.EnvVars, in.SandboxID)
	s.Settings.Set(&next)
	if err := placeSandboxID(in.SandboxID); err != nil {
		return err
	}
	return s.Gate.SetToken(in.AccessToken)
}

// identify gives a disk that came from another sandbox's its own identity, or a new one.
func (s *Service) identify(own identity) error {
	if own != nil {
		return becomeItself(own)
	}
	return becomeAnother(func() error { return makeHostKeys(s.Table.Reaper) })
}

func placeGeneration(id string) error {
	return place(filepath.Join(run, "sandkeep/generation"), []byte(id+"\n"), 0o644)
}

func withID(env map[string]string, id string) map[string]string {
	changed := map[string]string{}
	for name, value := range env {
		changed[name] = value
	}
	changed["SANDKEEP_SANDBOX_ID"] = id
	return changed
}

func (s *Service) resumeHooks(event, generation string, arrived time.Time, deadline connect.Integer) error {
	patience := time.Duration(deadline) * time.Millisecond
	if patience <= 0 {
		patience = defaultHooks
	}
	env := []string{"SANDKEEP_EVENT=" + event, "SANDKEEP_GENERATION=" + generation}
	return runHooks(hooksResume, env, arrived.Add(patience), s.runHook)
}

func (s *Service) runHook(path string, env []string, patience time.Duration) error {
	return runProgram(s.Table.Reaper, path, nil, env, patience)
}
