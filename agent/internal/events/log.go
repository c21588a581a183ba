// Package events keeps the last things that happened inside which the outside should know.
package events

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"sandkeep/agent/internal/connect"
)

const kept = 100

// Types of events.
const (
	OOMKill  = "oom_kill"
	OOMStuck = "oom_stuck"
)

// Event is one of them.
type Event struct {
	Seq      int64     `json:"seq"`
	Time     time.Time `json:"time"`
	Type     string    `json:"type"`
	PID      int       `json:"pid,omitempty"`
	Process  string    `json:"process,omitempty"`
	RSSBytes int64     `json:"rssBytes,omitempty"`
}

// Log is safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	last int64
	all  []Event
}

// Add numbers and stores an event.
func (l *Log) Add(event Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	event.Seq, event.Time = l.last, time.Now().UTC()
	if len(l.all) == kept {
		l.all = append(l.all[:0], l.all[1:]...)
	}
	l.all = append(l.all, event)
	// The console is read by nobody inside, and its growth is how the outside learns that there is something to fetch.
	_, _ = fmt.Fprintf(os.Stderr, "%s %s %d\n", event.Type, event.Process, event.PID)
}

// After returns the events with a greater number, and the number of the last.
func (l *Log) After(seq int64) ([]Event, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	newer := []Event{}
	for _, event := range l.all {
		if event.Seq > seq {
			newer = append(newer, event)
		}
	}
	return newer, l.last
}

// Register adds GET /events.
func (l *Log) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
		newer, last := l.After(after)
		connect.WriteJSON(w, http.StatusOK, map[string]any{"events": newer, "lastSeq": last})
	})
}
