package fsapi

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/fileinfo"
	"sandkeep/agent/internal/watch"
)

type watchRequest struct {
	Path               string `json:"path"`
	Recursive          bool   `json:"recursive"`
	IncludeEntry       bool   `json:"includeEntry"`
	AllowNetworkMounts bool   `json:"allowNetworkMounts"`
}

type watcherRequest struct {
	WatcherID string `json:"watcherId"`
}

type watcherResponse struct {
	WatcherID string `json:"watcherId"`
}

type fileEvent struct {
	Name  string          `json:"name"`
	Type  string          `json:"type"`
	Entry *fileinfo.Entry `json:"entry,omitempty"`
}

type eventsResponse struct {
	Events []fileEvent `json:"events"`
}

type watchMessage struct {
	Start      *empty     `json:"start,omitempty"`
	Filesystem *fileEvent `json:"filesystem,omitempty"`
	Keepalive  *empty     `json:"keepalive,omitempty"`
}

func (s *Service) open(r *http.Request, in *watchRequest) (*watch.Watcher, error) {
	_, path, err := s.resolve(r, in.Path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, missing(err, "path")
	}
	if !info.IsDir() {
		return nil, connect.Errorf(connect.InvalidArgument, "path %s not a directory", path)
	}
	watcher, err := s.Watchers.Open(path, in.Recursive, in.IncludeEntry, in.AllowNetworkMounts)
	switch {
	case errors.Is(err, watch.ErrTooMany), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EMFILE):
		return nil, connect.Errorf(connect.ResourceExhausted, "%v", err)
	case errors.Is(err, watch.ErrNetwork):
		return nil, connect.Errorf(connect.InvalidArgument, "%v", err)
	}
	return watcher, err
}

func describeEvents(w *watch.Watcher, events []watch.Event) []fileEvent {
	described := make([]fileEvent, 0, len(events))
	var names *account.Names
	for _, event := range events {
		out := fileEvent{Name: event.Name, Type: event.Kind}
		if w.Entries && event.Kind != watch.Remove && event.Kind != watch.Rename {
			if names == nil {
				names = account.NewNames()
			}
			out.Entry, _ = fileinfo.Describe(filepath.Join(w.Root, event.Name), names)
		}
		described = append(described, out)
	}
	return described
}

func (s *Service) watchDir(r *http.Request, in *watchRequest, out *connect.Stream) error {
	watcher, err := s.open(r, in)
	if err != nil {
		return err
	}
	defer watcher.Close()
	out.Send(watchMessage{Start: &empty{}})
	var late <-chan time.Time
	if timeout := connect.Timeout(r); timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		late = timer.C
	}
	keepalive := connect.Keepalive(r)
	silence := time.NewTimer(keepalive)
	defer silence.Stop()
	for {
		if err := out.Flush(); err != nil {
			return err
		}
		silence.Reset(keepalive)
		select {
		case <-watcher.Ready():
			events, broken := watcher.Take()
			for _, event := range describeEvents(watcher, events) {
				out.Send(watchMessage{Filesystem: &event})
			}
			if broken != nil {
				return connect.Errorf(connect.ResourceExhausted, "%v", broken)
			}
		case <-silence.C:
			out.Send(watchMessage{Keepalive: &empty{}})
		case <-late:
			return connect.Errorf(connect.DeadlineExceeded, "the watch's deadline has passed")
		case <-r.Context().Done():
			return r.Context().Err()
		}
	}
}

func (s *Service) createWatcher(r *http.Request, in *watchRequest) (watcherResponse, error) {
	watcher, err := s.open(r, in)
	if err != nil {
		return watcherResponse{}, err
	}
	return watcherResponse{watcher.ID}, nil
}

func (s *Service) watcher(id string) (*watch.Watcher, error) {
	if found := s.Watchers.Find(id); found != nil {
		return found, nil
	}
	return nil, connect.Errorf(connect.NotFound, "watcher with id %s not found", id)
}

func (s *Service) getWatcherEvents(_ *http.Request, in *watcherRequest) (eventsResponse, error) {
	watcher, err := s.watcher(in.WatcherID)
	if err != nil {
		return eventsResponse{}, err
	}
	events, _ := watcher.Take()
	return eventsResponse{describeEvents(watcher, events)}, nil
}

func (s *Service) removeWatcher(_ *http.Request, in *watcherRequest) (empty, error) {
	watcher, err := s.watcher(in.WatcherID)
	if err == nil {
		watcher.Close()
	}
	return empty{}, err
}
