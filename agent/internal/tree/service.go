package tree

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"syscall"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/caller"
	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/fileinfo"
	"sandkeep/agent/internal/gate"
	"sandkeep/agent/internal/settings"
)

// Service answers /tree.
type Service struct{ Settings *settings.Store }

// Register adds the routes.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /tree", s.get)
	mux.HandleFunc("PUT /tree", s.put)
}

func (s *Service) resolve(r *http.Request) (account.Account, string, error) {
	user, err := caller.FromQuery(r, s.Settings.Get())
	if err != nil {
		return user, "", err
	}
	path, err := user.Resolve(r.URL.Query().Get("path"))
	return user, path, err
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, account.ErrUnknown):
		status = http.StatusUnauthorized
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		status = http.StatusInsufficientStorage
	case errors.Is(err, ErrArchive), errors.Is(err, account.ErrPath), errors.Is(err, syscall.ENOTDIR),
		errors.Is(err, syscall.ENOTEMPTY), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP):
		status = http.StatusBadRequest
	case errors.Is(err, fs.ErrNotExist):
		status = http.StatusNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		status = http.StatusForbidden
	}
	gate.WriteError(w, status, err.Error())
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) {
	_, path, err := s.resolve(r)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		fail(w, err)
		return
	}
	query := r.URL.Query()
	header := w.Header()
	header.Set("Content-Type", "application/x-tar")
	header.Set("Trailer", "X-Tree-Files, X-Tree-Skipped, X-Tree-Complete")
	packed, err := Pack(w, path, PackOptions{Exclude: query["exclude"], OneFileSystem: query.Get("oneFileSystem") == "true"})
	if err != nil {
		panic(http.ErrAbortHandler) // a cut stream must not look complete
	}
	header.Set("X-Tree-Files", strconv.FormatInt(packed.Files, 10))
	header.Set("X-Tree-Skipped", strconv.FormatInt(packed.Skipped, 10))
	header.Set("X-Tree-Complete", "true")
}

func (s *Service) put(w http.ResponseWriter, r *http.Request) {
	user, path, err := s.resolve(r)
	if err == nil {
		err = fileinfo.MakeDirs(path, user)
	}
	if err != nil {
		fail(w, err)
		return
	}
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		if body, err = gzip.NewReader(r.Body); err != nil {
			gate.WriteError(w, http.StatusBadRequest, "the body is not gzip: "+err.Error())
			return
		}
	}
	unpacked, err := Unpack(body, path, user, r.URL.Query().Get("owners") == "true")
	if err != nil {
		fail(w, err)
		return
	}
	connect.WriteJSON(w, http.StatusOK, unpacked)
}
