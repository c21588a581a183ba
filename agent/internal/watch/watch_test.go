package watch

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// collect gathers events until want of them came, or a little silence.
func collect(t *testing.T, w *Watcher, want int) []Event {
	t.Helper()
	var all []Event
	for {
		wait := 3 * time.Second
		if len(all) >= want {
			wait = 50 * time.Millisecond
		}
		select {
		case <-w.Ready():
			events, _ := w.Take()
			all = append(all, events...)
		case <-time.After(wait):
			return all
		}
	}
}

func TestUploadGivesThreeEvents(t *testing.T) {
	dir := t.TempDir()
	w, err := NewRegistry().Open(dir, false, false, true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	file, _ := os.Create(filepath.Join(dir, "f"))
	_ = file.Chown(os.Getuid(), os.Getgid())
	_, _ = file.WriteString("x")
	file.Close()
	want := []Event{{"f", Create}, {"f", Chmod}, {"f", Write}}
	if got := collect(t, w, 3); !slices.Equal(got, want) {
		t.Fatal(got)
	}
}

func TestRecursive(t *testing.T) {
	dir := t.TempDir()
	w, err := NewRegistry().Open(dir, true, false, true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	got := collect(t, w, 3)
	if want := []Event{{"a", Create}, {"a/b", Create}, {"a/b/c", Create}}; !slices.Equal(got, want) {
		t.Fatal(got)
	}
	_ = os.WriteFile(filepath.Join(dir, "a/b/c/f"), nil, 0o644)
	_ = os.Remove(filepath.Join(dir, "a/b/c/f"))
	if got := collect(t, w, 2); !slices.Equal(got, []Event{{"a/b/c/f", Create}, {"a/b/c/f", Remove}}) {
		t.Fatal(got)
	}
	// A moved folder goes on being watched under its new name.
	_ = os.Rename(filepath.Join(dir, "a/b"), filepath.Join(dir, "z"))
	collect(t, w, 2)
	_ = os.WriteFile(filepath.Join(dir, "z/new"), nil, 0o644)
	if got := collect(t, w, 1); !slices.Equal(got, []Event{{"z/new", Create}}) {
		t.Fatal(got)
	}
}

func TestLimitsAndClose(t *testing.T) {
	registry := NewRegistry()
	w, err := registry.Open(t.TempDir(), false, false, true)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 * maxQueued {
		w.push(Event{"x", Write})
	}
	if events, _ := w.Take(); len(events) > maxQueued {
		t.Fatal(len(events))
	}
	w.Close()
	if registry.Find(w.ID) != nil {
		t.Fatal("still registered")
	}
	if _, err := registry.Open("/does/not/exist", false, false, true); err == nil || len(registry.watchers) != 0 {
		t.Fatal(err)
	}
}
