package connect

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"time"
)

const streamType = "application/connect+json"

// DefaultKeepalive is what E2B uses when the client does not ask for an interval.
const DefaultKeepalive = 90 * time.Second

// Stream is the answer of a server-streaming call. Messages gather in Buffer until Flush.
type Stream struct {
	Buffer []byte
	w      http.ResponseWriter
	flush  func() error
}

// ServerStream turns a function into a handler; what it returns becomes the end envelope.
func ServerStream[Request any](call func(*http.Request, *Request, *Stream) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		stream, ok := openStream(w, r)
		if !ok {
			return
		}
		request := new(Request)
		err := readFirst(w, r, request)
		if err == nil {
			err = call(r, request, stream)
		}
		stream.end(err)
	}
}

// ClientStream turns a function that reads messages into a handler. next returns io.EOF at the end.
func ClientStream[Request, Response any](call func(r *http.Request, next func() (*Request, error)) (Response, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		stream, ok := openStream(w, r)
		if !ok {
			return
		}
		response, err := call(r, func() (*Request, error) {
			message, err := ReadEnvelope(r.Body)
			if err != nil {
				return nil, err
			}
			request := new(Request)
			return request, Decode(message, request)
		})
		if err == nil {
			stream.Buffer = AppendMessage(stream.Buffer, response)
		}
		stream.end(err)
	}
}

func openStream(w http.ResponseWriter, r *http.Request) (*Stream, bool) {
	if !IsStream(r) {
		w.Header().Set("Accept-Post", streamType)
		WriteJSON(w, http.StatusUnsupportedMediaType, Errorf(InvalidArgument, "content type must be %s", streamType))
		return nil, false
	}
	w.Header().Set("Content-Type", streamType)
	return &Stream{w: w, flush: http.NewResponseController(w).Flush}, true
}

func readFirst(w http.ResponseWriter, r *http.Request, request any) error {
	body, err := readBody(w, r, MaxMessage+headerSize)
	if err != nil {
		return err
	}
	message, err := ReadEnvelope(bytes.NewReader(body))
	if err == io.EOF {
		return Errorf(InvalidArgument, "missing request message")
	}
	if err != nil {
		return err
	}
	return Decode(message, request)
}

// Send appends one message.
func (s *Stream) Send(message any) { s.Buffer = AppendMessage(s.Buffer, message) }

// Flush puts everything gathered on the wire, headers included.
func (s *Stream) Flush() error {
	if len(s.Buffer) > 0 {
		_, err := s.w.Write(s.Buffer)
		s.Buffer = s.Buffer[:0]
		if err != nil {
			return err
		}
	}
	return s.flush()
}

func (s *Stream) end(err error) {
	var failure *Error
	if err != nil {
		failure = From(err)
	}
	s.Buffer = AppendEnd(s.Buffer, failure)
	_ = s.Flush()
}

// Keepalive is the interval that the client asked for.
func Keepalive(r *http.Request) time.Duration {
	seconds, err := strconv.Atoi(r.Header.Get("Keepalive-Ping-Interval"))
	if err != nil || seconds <= 0 || seconds > 86400 {
		return DefaultKeepalive
	}
	return time.Duration(seconds) * time.Second
}

// Timeout is the client's deadline for the call; 0 is none.
func Timeout(r *http.Request) time.Duration {
	milliseconds, err := strconv.ParseInt(r.Header.Get("Connect-Timeout-Ms"), 10, 64)
	if err != nil || milliseconds <= 0 || milliseconds > 1<<42 {
		return 0
	}
	return time.Duration(milliseconds) * time.Millisecond
}
