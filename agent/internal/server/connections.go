package server

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// How many are held open. Those that come from processes inside have a number of their own: they never keep the host out.
const (
	maxConnections = 2048
	maxFromInside  = 512
)

// connections knows every open one, so that stale ones can be closed after a restore.
type connections struct {
	mu         sync.Mutex
	open       map[net.Conn]struct{}
	fromInside int
}

func newConnections() *connections { return &connections{open: map[net.Conn]struct{}{}} }

// changed is the server's ConnState hook.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		inside := isFromInside(conn.RemoteAddr(), conn.LocalAddr())
		c.mu.Lock()
		full := len(c.open)-c.fromInside >= maxConnections
		if inside {
			full = c.fromInside >= maxFromInside
			c.fromInside++
		}
		c.open[conn] = struct{}{}
		c.mu.Unlock()
		if full {
			_ = conn.Close()
		}
	case http.StateClosed, http.StateHijacked:
		c.mu.Lock()
		if _, known := c.open[conn]; known && isFromInside(conn.RemoteAddr(), conn.LocalAddr()) {
			c.fromInside--
		}
		delete(c.open, conn)
		c.mu.Unlock()
	}
}

// isFromInside tells by the addresses: who comes by the network has another one than we have.
func isFromInside(remote, local net.Addr) bool {
	from, ok := remote.(*net.TCPAddr)
	to, known := local.(*net.TCPAddr)
	return ok && known && (from.IP.IsLoopback() || from.IP.Equal(to.IP))
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
