package fileapi

import (
	"io"
	"net/http"
	"os"
	"path/filepath"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/fileinfo"
)

type composeRequest struct {
	Sources     []string `json:"source_paths"`
	Destination string   `json:"destination"`
}

func (s *Service) compose(w http.ResponseWriter, r *http.Request) {
	in := new(composeRequest)
	if err := connect.ReadJSON(w, r, in); err != nil {
		fail(w, badRequest(err.Error()))
		return
	}
	user, err := s.user(r)
	if err != nil {
		fail(w, err)
		return
	}
	done, err := concatenate(in, user)
	if err != nil {
		fail(w, err)
		return
	}
	connect.WriteJSON(w, http.StatusOK, done)
}

// concatenate writes beside the destination and renames, so that the destination is never half there and a source
// may be the destination itself.
func concatenate(in *composeRequest, user account.Account) (written, error) {
	if len(in.Sources) == 0 || in.Destination == "" {
		return written{}, badRequest("source_paths and destination are required")
	}
	destination, err := user.Resolve(in.Destination)
	if err != nil {
		return written{}, err
	}
	if err := fileinfo.MakeDirs(filepath.Dir(destination), user); err != nil {
		return written{}, err
	}
	whole, err := os.CreateTemp(filepath.Dir(destination), ".compose-*")
	if err != nil {
		return written{}, err
	}
	defer os.Remove(whole.Name())
	defer whole.Close()
	var size int64
	sources := make([]string, len(in.Sources))
	for i, source := range in.Sources {
		if sources[i], err = user.Resolve(source); err != nil {
			return written{}, err
		}
		added, err := appendFile(whole, sources[i])
		if err != nil {
			return written{}, err
		}
		size += added
	}
	if err := whole.Chown(int(user.UID), int(user.GID)); err != nil {
		return written{}, err
	}
	if err := whole.Chmod(0o644); err != nil {
		return written{}, err
	}
	if err := os.Rename(whole.Name(), destination); err != nil {
		return written{}, err
	}
	for _, source := range sources {
		if source != destination {
			_ = os.Remove(source)
		}
	}
	return written{Path: destination, Name: filepath.Base(destination), Type: "file", Size: &size}, nil
}

func appendFile(to *os.File, path string) (int64, error) {
	file, _, err := openRegular(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return io.Copy(to, file)
}
