// Package settings holds what /init last said about this sandbox. Readers take a snapshot; it is replaced as a whole.
package settings

import "sync/atomic"

// Settings are immutable once stored; copy, change, store.
type Settings struct {
	EnvVars          map[string]string
	DefaultUser      string
	DefaultWorkdir   string
	SandboxID        string
	MemoryLimitBytes int64
}

// Store is safe for many readers and one writer at a time.
type Store struct{ current atomic.Pointer[Settings] }

// NewStore starts with E2B's default user.
func NewStore() *Store {
	store := &Store{}
	store.current.Store(&Settings{DefaultUser: "user"})
	return store
}

// Get returns the present settings, which must not be changed.
func (s *Store) Get() *Settings { return s.current.Load() }

// Set replaces them.
func (s *Store) Set(next *Settings) { s.current.Store(next) }
