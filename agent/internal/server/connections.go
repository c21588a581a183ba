package server

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// maxConnections bounds what processes inside can make the agent hold open.
const maxConnections = 2048

// connections knows every open one, so that stale ones can be closed after a restore.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

func newConnections() *connections { return &connections{open: map[net.Conn]struct{}{}} }

// changed is the server's ConnState hook.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		c.mu.Lock()
		full := len(c.open) >= maxConnections
		c.open[conn] = struct{}{}
		c.mu.Unlock()
		if full {
			_ = conn.Close()
		}
	case http.StateClosed, http.StateHijacked:
		c.mu.Lock()
		delete(c.open, conn)
		c.mu.Unlock()
	}
}

type connectionKey struct{}

func withConnection(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// closeOthers closes all but the request's own. With a reset: there is nobody to say goodbye to.
func (c *connections) closeOthers(r *http.Request) {
	own, _ := r.Context().Value(connectionKey{}).(net.Conn)
	c.mu.Lock()
	stale := make([]net.Conn, 0, len(c.open))
	for conn := range c.open {
		if conn != own {
			stale = append(stale, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range stale {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}
