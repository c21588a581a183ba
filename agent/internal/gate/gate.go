// Package gate lets requests in: token, signed file URLs, and the answers that browsers want before they ask.
package gate

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"
)

// TokenHeader carries the access token.
const TokenHeader = "X-Access-Token"

// Protocol is the version of our extensions that this agent speaks; every answer says so, in ProtocolHeader. It is raised
// when a host that knows the new one alone could not work with the old one.
const (
	ProtocolHeader = "Sandkeep-Agent-Protocol"
	Protocol       = "1"
)

const minToken = 16

// Refusal is what everybody without a token hears.
const Refusal = "unauthorized access, please provide a valid access token or method signing if supported"

// ErrWeakToken says that a token is too short to be one.
var ErrWeakToken = errors.New("accessToken must have at least 16 characters")

// Gate holds the token, in memory only.
type Gate struct {
	token atomic.Pointer[string]
}

// SetToken replaces the token.
func (g *Gate) SetToken(token string) error {
	if len(token) < minToken {
		return ErrWeakToken
	}
	g.token.Store(&token)
	return nil
}

// HasToken tells whether /init has come.
func (g *Gate) HasToken() bool { return g.token.Load() != nil }

// Matches compares in constant time; hashing first hides the length, too.
func (g *Gate) Matches(offered string) bool {
	token := g.token.Load()
	if token == nil {
		return false
	}
	want, got := sha256.Sum256([]byte(*token)), sha256.Sum256([]byte(offered))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// Guard wraps all routes.
func (g *Gate) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowCrossOrigin(w.Header())
		w.Header().Set(ProtocolHeader, Protocol)
		if r.Method == http.MethodOptions {
			// A wildcard does not cover Authorization, so browsers are told what they asked for.
			if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
				w.Header().Set("Access-Control-Allow-Headers", asked)
			}
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if refused := g.check(r); refused != "" {
			WriteError(w, http.StatusUnauthorized, refused)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// check returns why a request is refused, or nothing.
func (g *Gate) check(r *http.Request) string {
	offered := r.Header.Get(TokenHeader)
	switch {
	case r.URL.Path == "/health" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return ""
	case r.URL.Path == "/init" && !g.HasToken():
		return ""
	case g.Matches(offered):
		return ""
	case r.URL.Path != "/files" || !g.HasToken():
		return Refusal
	case offered != "":
		return "access token present in header but does not match"
	}
	return g.checkSignature(r)
}

func allowCrossOrigin(header http.Header) {
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("Access-Control-Allow-Methods", "HEAD, GET, POST, PUT, PATCH, DELETE")
	header.Set("Access-Control-Allow-Headers", "*")
	header.Set("Access-Control-Expose-Headers", "Location, Cache-Control, X-Content-Type-Options, "+
		"Connect-Content-Encoding, Connect-Protocol-Version, Grpc-Status, Grpc-Message")
	header.Set("Access-Control-Max-Age", "7200")
}

// WriteError answers a plain HTTP failure; clients test for exactly these two fields.
func WriteError(w http.ResponseWriter, status int, message string) {
	body, _ := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
