package lifecycle

import (
	"net/http"
	"path/filepath"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/gate"
)

type resumeRequest struct {
	Timestamp  moment `json:"timestamp"`
	Hostname   string `json:"hostname"`
	Generation string `json:"generation"`
}

type resumeResponse struct {
	SkewSeconds float64  `json:"skewSeconds"`
	Processes   int      `json:"processes"`
	Warnings    []string `json:"warnings"`
}

// resume is the first call after a memory restore. Clients of before the save are gone, though their connections may
// look alive from here.
func (s *Service) resume(w http.ResponseWriter, r *http.Request) {
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
	if in.Generation != "" {
		problems.note(place(filepath.Join(run, "sandkeep/generation"), []byte(in.Generation+"\n"), 0o644))
	}
	s.Guard.Wake()
	s.Table.Reaper.Nudge()
	connect.WriteJSON(w, http.StatusOK, resumeResponse{skew, s.Table.Live(), problems})
}
