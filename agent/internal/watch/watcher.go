package watch

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"syscall"
)

const (
	maxWatchers = 256
	maxQueued   = 16384
)

// What Open refuses.
var (
	ErrTooMany = errors.New("too many watchers")
	ErrNetwork = errors.New("cannot watch path on network filesystem")
)

// Watcher gathers events until somebody takes them.
type Watcher struct {
	ID       string
	Root     string
	Entries  bool // the client wants each entry described
	notifier *notifier
	registry *Registry

	mu     sync.Mutex
	queue  []Event
	broken error
	ready  chan struct{}
}

// Registry knows all watchers.
type Registry struct {
	mu       sync.Mutex
	watchers map[string]*Watcher
}

// NewRegistry makes an empty one.
func NewRegistry() *Registry { return &Registry{watchers: map[string]*Watcher{}} }

// Open starts watching a directory.
func (r *Registry) Open(root string, recursive, entries, allowNetwork bool) (*Watcher, error) {
	if !allowNetwork && onNetwork(root) {
		return nil, fmt.Errorf("%w: %s", ErrNetwork, root)
	}
	var id [8]byte
	_, _ = rand.Read(id[:])
	w := &Watcher{ID: "w" + hex.EncodeToString(id[:]), Root: root, Entries: entries, registry: r, ready: make(chan struct{}, 1)}
	r.mu.Lock()
	full := len(r.watchers) >= maxWatchers
	if !full {
		r.watchers[w.ID] = w
	}
	r.mu.Unlock()
	if full {
		return nil, ErrTooMany
	}
	notifier, err := newNotifier(root, recursive)
	if err != nil {
		r.remove(w.ID)
		return nil, err
	}
	r.mu.Lock()
	w.notifier = notifier
	r.mu.Unlock()
	go w.run()
	return w, nil
}

// Find returns a watcher by id, or nil.
func (r *Registry) Find(id string) *Watcher {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watchers[id]
	if w == nil || w.notifier == nil {
		return nil
	}
	return w
}

func (r *Registry) remove(id string) {
	r.mu.Lock()
	delete(r.watchers, id)
	r.mu.Unlock()
}

func (w *Watcher) run() {
	err := w.notifier.read(w.push)
	w.mu.Lock()
	w.broken = err
	w.mu.Unlock()
	w.wake()
}

func (w *Watcher) push(event Event) {
	w.mu.Lock()
	if len(w.queue) >= maxQueued {
		w.queue = w.queue[maxQueued/4:]
	}
	w.queue = append(w.queue, event)
	w.mu.Unlock()
	w.wake()
}

func (w *Watcher) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Ready yields when there is something to take.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Take empties the queue; the error says that no more will come.
func (w *Watcher) Take() ([]Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.queue
	w.queue = nil
	return events, w.broken
}

// Close stops watching.
func (w *Watcher) Close() {
	w.registry.remove(w.ID)
	_ = w.notifier.file.Close()
}

// onNetwork tells whether inotify would miss changes that other machines make.
func onNetwork(path string) bool {
	var info syscall.Statfs_t
	if syscall.Statfs(path, &info) != nil {
		return false
	}
	switch uint32(info.Type) {
	case 0x6969, 0x65735546, 0x517B, 0xFE534D42, 0xFF534D42: // NFS, FUSE, SMB, SMB2, CIFS
		return true
	}
	return false
}
