package gate

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// checkSignature admits /files URLs that were signed with the token, for people who have only the URL.
func (g *Gate) checkSignature(r *http.Request) string {
	query := r.URL.Query()
	offered := query.Get("signature")
	if offered == "" {
		return "missing signature query parameter"
	}
	operation := "write"
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		operation = "read"
	}
	expiration := query.Get("signature_expiration")
	want := sign(query.Get("path"), operation, query.Get("username"), *g.token.Load(), expiration)
	if subtle.ConstantTimeCompare([]byte(want), []byte(offered)) != 1 {
		return "invalid signature"
	}
	if expiration == "" {
		return ""
	}
	at, err := strconv.ParseInt(expiration, 10, 64)
	if err != nil || at < time.Now().Unix() {
		return "signature is already expired"
	}
	return ""
}

func sign(path, operation, user, token, expiration string) string {
	parts := []string{path, operation, user, token}
	if expiration != "" {
		parts = append(parts, expiration)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}
