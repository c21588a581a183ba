package connect

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func TestEnvelopeRoundTrip(t *testing.T) {
	buffer := AppendMessage(nil, map[string]int{"a": 1})
	buffer = AppendMessage(buffer, struct{}{})
	buffer = AppendEnd(buffer, nil)
	reader := bytes.NewReader(buffer)
	for _, want := range []string{`{"a":1}`, `{}`} {
		if got, err := ReadEnvelope(reader); err != nil || string(got) != want {
			t.Fatalf("%s %v, want %s", got, err, want)
		}
	}
	if _, err := ReadEnvelope(reader); err != io.EOF {
		t.Fatalf("end envelope: %v", err)
	}
}

func TestEnvelopeRefusals(t *testing.T) {
	for name, raw := range map[string]string{
		"cut header": "\x00\x00", "cut body": "\x00\x00\x00\x00\x05ab", "too large": "\x00\xff\xff\xff\xff", "compressed": "\x01\x00\x00\x00\x00",
	} {
		if _, err := ReadEnvelope(strings.NewReader(raw)); err == nil || err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestScalars(t *testing.T) {
	var message struct {
		B Bytes
		I Integer
	}
	for raw, want := range map[string]string{`"aGk="`: "hi", `"aGk"`: "hi", `"__8"`: "\xff\xff", `"//8="`: "\xff\xff", `""`: ""} {
		if err := json.Unmarshal([]byte(`{"B":`+raw+`}`), &message); err != nil || string(message.B) != want {
			t.Errorf("%s: %q %v", raw, message.B, err)
		}
	}
	for raw, want := range map[string]Integer{`7`: 7, `"8"`: 8, `1e3`: 1000, `"-1"`: -1} {
		if err := json.Unmarshal([]byte(`{"I":`+raw+`}`), &message); err != nil || message.I != want {
			t.Errorf("%s: %d %v", raw, message.I, err)
		}
	}
	if json.Unmarshal([]byte(`{"I":1.5}`), &message) == nil || json.Unmarshal([]byte(`{"B":"!"}`), &message) == nil {
		t.Error("nonsense was accepted")
	}
}

func TestErrorCodes(t *testing.T) {
	_, missing := os.Open("/does/not/exist")
	for want, err := range map[Code]error{NotFound: missing, Internal: errors.New("x"), AlreadyExists: Errorf(AlreadyExists, "y")} {
		if got := From(err).Code; got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

func TestServerStreamEndsWithError(t *testing.T) {
	handler := ServerStream(func(_ *http.Request, in *struct{ A int }, out *Stream) error {
		out.Send(map[string]int{"got": in.A})
		return Errorf(NotFound, "gone")
	})
	request := httptest.NewRequest("POST", "/", bytes.NewReader(AppendMessage(nil, map[string]int{"A": 5})))
	request.Header.Set("Content-Type", streamType)
	recorder := httptest.NewRecorder()
	handler(recorder, request)
	want := "\x00\x00\x00\x00\x09{\"got\":5}\x02\x00\x00\x00\x2f{\"error\":{\"code\":\"not_found\",\"message\":\"gone\"}}"
	body := recorder.Body.String()
	if recorder.Code != 200 || len(body) != len(want) || !strings.HasPrefix(body, want[:14]) || body[14] != 2 {
		t.Fatalf("%d %q", recorder.Code, body)
	}
}

func TestTooLargeUnary(t *testing.T) {
	handler := Unary(func(*http.Request, *struct{}) (struct{}, error) { return struct{}{}, nil })
	recorder := httptest.NewRecorder()
	handler(recorder, httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, MaxMessage+1))))
	if recorder.Code != http.StatusTooManyRequests {
		t.Fatalf("%d %s", recorder.Code, recorder.Body)
	}
}
