// Package fsapi is E2B's filesystem.Filesystem service.
package fsapi

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/caller"
	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/fileinfo"
	"sandkeep/agent/internal/settings"
	"sandkeep/agent/internal/watch"
)

// maxListed bounds one listing; a deeper look has to be taken in parts.
const maxListed = 100_000

// Service answers filesystem RPCs.
type Service struct {
	Settings *settings.Store
	Watchers *watch.Registry
}

type empty struct{}

type pathRequest struct {
	Path string `json:"path"`
}

type moveRequest struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}

type listRequest struct {
	Path  string          `json:"path"`
	Depth connect.Integer `json:"depth"`
}

type entryResponse struct {
	Entry *fileinfo.Entry `json:"entry"`
}

type listResponse struct {
	Entries []*fileinfo.Entry `json:"entries"`
}

// Register adds the routes.
func (s *Service) Register(mux *http.ServeMux) {
	const service = "POST /filesystem.Filesystem/"
	mux.HandleFunc(service+"Stat", connect.Unary(s.stat))
	mux.HandleFunc(service+"MakeDir", connect.Unary(s.makeDir))
	mux.HandleFunc(service+"Move", connect.Unary(s.move))
	mux.HandleFunc(service+"ListDir", connect.Unary(s.listDir))
	mux.HandleFunc(service+"Remove", connect.Unary(s.remove))
	mux.HandleFunc(service+"WatchDir", connect.ServerStream(s.watchDir))
	mux.HandleFunc(service+"CreateWatcher", connect.Unary(s.createWatcher))
	mux.HandleFunc(service+"GetWatcherEvents", connect.Unary(s.getWatcherEvents))
	mux.HandleFunc(service+"RemoveWatcher", connect.Unary(s.removeWatcher))
}

// resolve finds the user and the absolute path of a request.
func (s *Service) resolve(r *http.Request, path string) (account.Account, string, error) {
	user, err := caller.FromBasic(r, s.Settings.Get())
	if err != nil {
		return user, "", err
	}
	resolved, err := user.Resolve(path)
	return user, resolved, err
}

func (s *Service) stat(r *http.Request, in *pathRequest) (entryResponse, error) {
	_, path, err := s.resolve(r, in.Path)
	if err != nil {
		return entryResponse{}, err
	}
	return entry(path)
}

func entry(path string) (entryResponse, error) {
	found, err := fileinfo.Describe(path, account.NewNames())
	return entryResponse{found}, missing(err, "file")
}

// missing gives "no such file" E2B's words.
func missing(err error, what string) error {
	var failed *fs.PathError
	if errors.As(err, &failed) && errors.Is(err, fs.ErrNotExist) {
		return connect.Errorf(connect.NotFound, "%s not found: %s", what, failed.Path)
	}
	return err
}

func (s *Service) makeDir(r *http.Request, in *pathRequest) (entryResponse, error) {
	user, path, err := s.resolve(r, in.Path)
	if err != nil {
		return entryResponse{}, err
	}
	if info, err := os.Stat(path); err == nil {
		if info.IsDir() {
			return entryResponse{}, connect.Errorf(connect.AlreadyExists, "directory already exists: %s", path)
		}
		return entryResponse{}, connect.Errorf(connect.InvalidArgument, "path already exists but it is not a directory: %s", path)
	}
	if err := fileinfo.MakeDirs(path, user); err != nil {
		return entryResponse{}, err
	}
	return entry(path)
}

func (s *Service) move(r *http.Request, in *moveRequest) (entryResponse, error) {
	user, source, err := s.resolve(r, in.Source)
	if err != nil {
		return entryResponse{}, err
	}
	destination, err := user.Resolve(in.Destination)
	if err != nil {
		return entryResponse{}, err
	}
	if _, err := os.Lstat(source); err != nil {
		return entryResponse{}, missing(err, "source file")
	}
	if err := fileinfo.MakeDirs(filepath.Dir(destination), user); err != nil {
		return entryResponse{}, err
	}
	if err := os.Rename(source, destination); err != nil {
		return entryResponse{}, err
	}
	return entry(destination)
}

func (s *Service) remove(r *http.Request, in *pathRequest) (empty, error) {
	_, path, err := s.resolve(r, in.Path)
	if err != nil {
		return empty{}, err
	}
	if path == "/" {
		return empty{}, connect.Errorf(connect.InvalidArgument, "the root folder cannot be removed")
	}
	return empty{}, os.RemoveAll(path)
}

func (s *Service) listDir(r *http.Request, in *listRequest) (listResponse, error) {
	_, path, err := s.resolve(r, in.Path)
	if err != nil {
		return listResponse{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return listResponse{}, missing(err, "directory")
	}
	if !info.IsDir() {
		return listResponse{}, connect.Errorf(connect.InvalidArgument, "path is not a directory: %s", path)
	}
	listing := &listing{root: path, depth: max(1, int(in.Depth)), names: account.NewNames(), entries: []*fileinfo.Entry{}}
	// The trailing slash makes a symlink to a directory be listed as the directory that it points to.
	err = filepath.WalkDir(strings.TrimSuffix(path, "/")+"/", listing.visit)
	return listResponse{listing.entries}, err
}

type listing struct {
	root    string
	depth   int
	names   *account.Names
	entries []*fileinfo.Entry
}

// visit tolerates what vanishes or cannot be read meanwhile: a listing is a snapshot of something alive.
func (l *listing) visit(path string, _ fs.DirEntry, failure error) error {
	relative, err := filepath.Rel(l.root, path)
	if err != nil || relative == "." {
		return failure
	}
	if failure != nil {
		return nil
	}
	found, err := fileinfo.Describe(filepath.Join(l.root, relative), l.names)
	if err != nil {
		return nil
	}
	if len(l.entries) >= maxListed {
		return connect.Errorf(connect.ResourceExhausted, "more than %d entries", maxListed)
	}
	l.entries = append(l.entries, found)
	if found.Type == fileinfo.TypeDirectory && found.SymlinkTarget == "" && strings.Count(relative, "/")+1 >= l.depth {
		return fs.SkipDir
	}
	return nil
}
