package connect

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// bodyDeadline bounds how long a client may take to send one message, so that half-sent ones do not pile up.
const bodyDeadline = 30 * time.Second

// Unary turns a function into a handler.
func Unary[Request, Response any](call func(*http.Request, *Request) (Response, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request := new(Request)
		if err := ReadJSON(w, r, request); err != nil {
			WriteError(w, err)
			return
		}
		response, err := call(r, request)
		if err != nil {
			WriteError(w, err)
			return
		}
		WriteJSON(w, http.StatusOK, response)
	}
}

// ReadJSON decodes the body into message, within the limits of size and time. An empty body is an empty message.
func ReadJSON(w http.ResponseWriter, r *http.Request, message any) error {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return Errorf(Unimplemented, "compressed messages are not supported")
	}
	body, err := readBody(w, r, MaxMessage)
	if err != nil {
		return err
	}
	return Decode(body, message)
}

// Decode parses one JSON message.
func Decode(body []byte, message any) error {
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, message); err != nil {
		return Errorf(InvalidArgument, "malformed JSON: %v", err)
	}
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyDeadline))
	// Read to the very end: only then does net/http start to notice that the client went away.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	_ = control.SetReadDeadline(time.Time{})
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, Errorf(ResourceExhausted, "message exceeds %d bytes", tooLarge.Limit)
	}
	if err != nil {
		return nil, Errorf(InvalidArgument, "reading the request: %v", err)
	}
	return body, nil
}

// WriteJSON answers with a JSON body and its length, in one write.
func WriteJSON(w http.ResponseWriter, status int, message any) {
	body, err := json.Marshal(message)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":"internal","message":"cannot encode the answer"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// WriteError answers a failed unary call.
func WriteError(w http.ResponseWriter, err error) {
	failure := From(err)
	status, ok := statusOf[failure.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	WriteJSON(w, status, failure)
}

// IsStream tells streaming requests from unary ones.
func IsStream(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Content-Type"), "application/connect+json")
}
