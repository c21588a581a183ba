package server

import (
	"net"
	"net/http"
	"testing"
)

// peer is a connection of which only the addresses matter.
type peer struct {
	net.Conn
	remote, local net.Addr
	closed        bool
}

func (p *peer) RemoteAddr() net.Addr { return p.remote }
func (p *peer) LocalAddr() net.Addr  { return p.local }
func (p *peer) Close() error         { p.closed = true; return nil }

func address(text string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(text), Port: 1} }

func TestTheInsideNeverKeepsTheHostOut(t *testing.T) {
	c := newConnections()
	var held []*peer
	for _, own := range []string{"127.0.0.1", "10.0.0.2"} {
		for range maxFromInside {
			p := &peer{remote: address(own), local: address(own)}
			c.changed(p, http.StateNew)
			held = append(held, p)
		}
	}
	refused := 0
	for _, p := range held {
		if p.closed {
			refused++
		}
	}
	if refused != maxFromInside {
		t.Fatalf("%d of %d were refused", refused, len(held))
	}
	host := &peer{remote: address("10.0.0.1"), local: address("10.0.0.2")}
	c.changed(host, http.StateNew)
	if host.closed {
		t.Fatal("the host was kept out")
	}
	for _, p := range held {
		c.changed(p, http.StateClosed)
		c.changed(p, http.StateClosed)
	}
	again := &peer{remote: address("::1"), local: address("::1")}
	c.changed(again, http.StateNew)
	if again.closed || c.fromInside != 1 {
		t.Fatalf("%d are still counted", c.fromInside)
	}
}
