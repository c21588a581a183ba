package connect

import (
	"encoding/binary"
	"encoding/json"
	"io"
)

// MaxMessage bounds one JSON message and one unary body.
const MaxMessage = 4 << 20

const (
	headerSize     = 5
	flagCompressed = 1
	flagEnd        = 2
)

// ReadEnvelope returns the next message, or io.EOF at a clean end (which an end envelope also is).
func ReadEnvelope(body io.Reader) ([]byte, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(body, header[:]); err != nil {
		if err == io.EOF {
			return nil, io.EOF
		}
		return nil, Errorf(InvalidArgument, "incomplete envelope")
	}
	size := binary.BigEndian.Uint32(header[1:])
	switch {
	case header[0]&flagCompressed != 0:
		return nil, Errorf(Unimplemented, "compressed messages are not supported")
	case size > MaxMessage:
		return nil, Errorf(ResourceExhausted, "message of %d bytes exceeds %d", size, MaxMessage)
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(body, message); err != nil {
		return nil, Errorf(InvalidArgument, "incomplete envelope")
	}
	if header[0]&flagEnd != 0 {
		return nil, io.EOF
	}
	return message, nil
}

// BeginEnvelope appends room for a header and returns where it starts; append the message, then SealEnvelope.
// This way a message is built in place, without a copy.
func BeginEnvelope(buffer []byte) ([]byte, int) {
	return append(buffer, 0, 0, 0, 0, 0), len(buffer)
}

// SealEnvelope fills in the header that starts at mark.
func SealEnvelope(buffer []byte, mark int) {
	binary.BigEndian.PutUint32(buffer[mark+1:], uint32(len(buffer)-mark-headerSize))
}

// AppendMessage appends one message.
func AppendMessage(buffer []byte, message any) []byte {
	buffer, mark := BeginEnvelope(buffer)
	body, err := json.Marshal(message)
	if err != nil {
		body = []byte("{}")
	}
	buffer = append(buffer, body...)
	SealEnvelope(buffer, mark)
	return buffer
}

// AppendEnd appends the envelope that closes a stream: every stream must have one, or clients wait for ever.
func AppendEnd(buffer []byte, failure *Error) []byte {
	mark := len(buffer)
	if failure == nil {
		buffer = AppendMessage(buffer, struct{}{})
	} else {
		buffer = AppendMessage(buffer, map[string]any{"error": failure})
	}
	buffer[mark] = flagEnd
	return buffer
}
