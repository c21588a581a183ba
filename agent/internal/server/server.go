// Package server puts the agent's services behind one listener.
package server

import (
	"net"
	"net/http"
	"strconv"
	"time"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/events"
	"sandkeep/agent/internal/fileapi"
	"sandkeep/agent/internal/fsapi"
	"sandkeep/agent/internal/gate"
	"sandkeep/agent/internal/guard"
	"sandkeep/agent/internal/lifecycle"
	"sandkeep/agent/internal/metrics"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/processapi"
	"sandkeep/agent/internal/settings"
	"sandkeep/agent/internal/tree"
	"sandkeep/agent/internal/watch"
)

const (
	headerDeadline = 10 * time.Second
	idleDeadline   = 10 * time.Minute
	maxHeader      = 64 << 10
)

// Serve answers until the listener breaks.
func Serve(port int, store *settings.Store, table *process.Table) error {
	log := &events.Log{}
	guard := guard.New(table, log)
	table.OnStart(guard.Wake)
	gate := &gate.Gate{}
	connections := newConnections()
	mux := http.NewServeMux()
	for _, service := range []interface{ Register(*http.ServeMux) }{
		&processapi.Service{Table: table, Settings: store},
		&fsapi.Service{Settings: store, Watchers: watch.NewRegistry()},
		fileapi.New(store),
		&tree.Service{Settings: store},
		&lifecycle.Service{Gate: gate, Settings: store, Table: table, Guard: guard, CloseOthers: connections.closeOthers},
		&metrics.Service{Table: table},
		log,
	} {
		service.Register(mux)
	}
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, prefix := range []string{"/process.Process/", "/filesystem.Filesystem/"} {
		mux.HandleFunc(prefix, func(w http.ResponseWriter, r *http.Request) {
			connect.WriteError(w, connect.Errorf(connect.Unimplemented, "unknown method %s", r.URL.Path))
		})
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{Handler: gate.Guard(mux), ReadHeaderTimeout: headerDeadline, IdleTimeout: idleDeadline,
		MaxHeaderBytes: maxHeader, Protocols: protocols, ConnState: connections.changed, ConnContext: withConnection}
	listener, err := net.Listen("tcp4", net.JoinHostPort("0.0.0.0", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return server.Serve(listener)
}
