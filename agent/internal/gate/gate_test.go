package gate

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

const token = "0123456789abcdef"

func ask(g *Gate, method, target, offered string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, target, nil)
	if offered != "" {
		request.Header.Set(TokenHeader, offered)
	}
	recorder := httptest.NewRecorder()
	g.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) })).ServeHTTP(recorder, request)
	return recorder
}

func TestGate(t *testing.T) {
	g := &Gate{}
	before := []struct {
		method, path, token string
		want                int
	}{
		{"GET", "/health", "", 299}, {"POST", "/init", "", 299}, {"GET", "/metrics", "", 401}, {"POST", "/exec", token, 401},
		{"GET", "/files?path=x", "", 401}, {"OPTIONS", "/files", "", 204}, {"POST", "/health", "", 401},
	}
	for _, c := range before {
		answer := ask(g, c.method, c.path, c.token)
		if said := answer.Header().Get(ProtocolHeader); said != Protocol {
			t.Errorf("%+v says protocol %q", c, said)
		}
		if got := answer.Code; got != c.want {
			t.Errorf("before init: %+v got %d", c, got)
		}
	}
	if g.SetToken("short") == nil || g.SetToken(token) != nil {
		t.Fatal("SetToken")
	}
	after := []struct {
		method, path, token string
		want                int
	}{
		{"GET", "/health", "", 299}, {"POST", "/init", "", 401}, {"POST", "/init", token, 299}, {"GET", "/metrics", token, 299},
		{"GET", "/metrics", token + "x", 401}, {"POST", "/process.Process/List", "", 401}, {"GET", "/files/compose", "", 401},
	}
	for _, c := range after {
		if got := ask(g, c.method, c.path, c.token).Code; got != c.want {
			t.Errorf("after init: %+v got %d", c, got)
		}
	}
}

func TestSignature(t *testing.T) {
	g := &Gate{}
	_ = g.SetToken(token)
	query := func(operation, expiration string) string {
		values := url.Values{"path": {"a b.txt"}, "username": {"user"}, "signature": {sign("a b.txt", operation, "user", token, expiration)}}
		if expiration != "" {
			values.Set("signature_expiration", expiration)
		}
		return "/files?" + values.Encode()
	}
	future, past := strconv.FormatInt(time.Now().Unix()+60, 10), "1000"
	for _, c := range []struct{ method, target, message string }{
		{"GET", query("read", ""), ""}, {"GET", query("read", future), ""}, {"POST", query("write", ""), ""},
		{"POST", query("read", ""), "invalid signature"}, {"GET", query("read", past), "signature is already expired"},
		{"GET", query("read", "")[:len(query("read", ""))-1] + "x", "invalid signature"}, {"GET", "/files?path=x", "missing signature query parameter"},
		{"GET", strings.Replace(query("read", future), future, future+"0", 1), "invalid signature"},
	} {
		answer := ask(g, c.method, c.target, "")
		if c.message == "" && answer.Code != 299 || c.message != "" && answer.Body.String() != `{"code":401,"message":"`+c.message+`"}` {
			t.Errorf("%+v: %d %s", c, answer.Code, answer.Body)
		}
	}
	if answer := ask(g, "GET", query("read", ""), "wrong"); !strings.Contains(answer.Body.String(), "present in header but does not match") {
		t.Error(answer.Body)
	}
}
