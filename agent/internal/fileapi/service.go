// Package fileapi is E2B's plain HTTP way to files: GET and POST /files, POST /files/compose.
package fileapi

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"syscall"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/caller"
	"sandkeep/agent/internal/fileinfo"
	"sandkeep/agent/internal/gate"
	"sandkeep/agent/internal/settings"
)

// Service answers file requests.
type Service struct {
	Settings *settings.Store
	bootID   string
}

// New makes the service; BootID must be made once per start of the sandbox.
func New(store *settings.Store) *Service { return &Service{Settings: store, bootID: newBootID()} }

// Register adds the routes.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /files", s.download)
	mux.HandleFunc("POST /files", s.upload)
	mux.HandleFunc("POST /files/compose", s.compose)
}

// written is what an upload answers per file.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Size     *int64            `json:"size,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// problem is a failure with its HTTP status.
type problem struct {
	status  int
	message string
}

func (p *problem) Error() string { return p.message }

func badRequest(message string) error { return &problem{http.StatusBadRequest, message} }

// fail answers with the status that an error deserves.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var known *problem
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &known):
		status = known.status
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, account.ErrUnknown):
		status = http.StatusUnauthorized
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		status = http.StatusInsufficientStorage
	case errors.Is(err, fs.ErrNotExist):
		status = http.StatusNotFound
	case errors.Is(err, account.ErrPath), errors.Is(err, fileinfo.ErrMetadata), errors.Is(err, syscall.ENOTDIR),
		errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL):
		status = http.StatusBadRequest
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		status = http.StatusForbidden
	}
	gate.WriteError(w, status, err.Error())
}

func (s *Service) user(r *http.Request) (account.Account, error) {
	return caller.FromQuery(r, s.Settings.Get())
}

// openRegular opens a file for reading and refuses everything that could block or is no file.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &problem{http.StatusNotFound, "path '" + path + "' does not exist"}
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = badRequest("path '" + path + "' is a directory")
	} else if err == nil && !info.Mode().IsRegular() {
		err = badRequest("path '" + path + "' is not a regular file")
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}
