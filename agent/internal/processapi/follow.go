package processapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/ring"
)

// perFlush is how much output goes into one write. It bounds what each connected client costs.
const perFlush = 64 << 10

var streamNames = [...]string{ring.Stdout: "stdout", ring.Stderr: "stderr", ring.PTY: "pty"}

// follower sends one process's events to one client.
type follower struct {
	out       *connect.Stream
	offsets   bool
	keepalive time.Duration
	deadline  time.Duration // of the stream, not of the process; 0 is none
}

func (f *follower) follow(ctx context.Context, p *process.Process, reader *ring.Reader) error {
	f.event(`{"start":{"pid":` + strconv.Itoa(p.PID) + `}}`)
	if f.offsets && reader.Missed > 0 {
		f.event(fmt.Sprintf(`{"dropped":{"bytes":%d,"offset":%d}}`, reader.Missed, reader.Begin))
	}
	var late <-chan time.Time
	if f.deadline > 0 {
		timer := time.NewTimer(f.deadline)
		defer timer.Stop()
		late = timer.C
	}
	silence := time.NewTimer(f.keepalive)
	defer silence.Stop()
	for {
		// Whatever is ready goes out in one write, be it start, output and end together.
		taken := reader.Take(perFlush, f.data)
		if taken.Ended {
			return f.finish(p)
		}
		if len(f.out.Buffer) > 0 {
			if err := f.out.Flush(); err != nil {
				return err
			}
			silence.Reset(f.keepalive)
			if taken.Bytes > 0 {
				continue
			}
		}
		select {
		case <-reader.Ready():
		case <-silence.C:
			f.event(`{"keepalive":{}}`)
		case <-late:
			return connect.Errorf(connect.DeadlineExceeded, "the stream's deadline has passed; the process goes on")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *follower) finish(p *process.Process) error {
	result, _ := p.Ended()
	if result.TimedOut {
		return connect.Errorf(connect.DeadlineExceeded, "the process was killed at its deadline")
	}
	body, err := json.Marshal(endingOf(result))
	if err != nil {
		return err
	}
	f.event(`{"end":` + string(body) + `}`)
	return nil
}

func (f *follower) event(body string) {
	buffer, mark := connect.BeginEnvelope(f.out.Buffer)
	buffer = append(buffer, `{"event":`...)
	buffer = append(buffer, body...)
	f.out.Buffer = append(buffer, '}')
	connect.SealEnvelope(f.out.Buffer, mark)
}

// data is called with the ring's own memory and encodes straight into the outgoing buffer.
func (f *follower) data(stream ring.Stream, offset int64, piece []byte) {
	buffer, mark := connect.BeginEnvelope(f.out.Buffer)
	buffer = append(buffer, `{"event":{"data":{"`...)
	buffer = append(buffer, streamNames[stream]...)
	buffer = append(buffer, `":"`...)
	buffer = base64.StdEncoding.AppendEncode(buffer, piece)
	buffer = append(buffer, '"')
	if f.offsets {
		buffer = append(buffer, `,"offset":`...)
		buffer = strconv.AppendInt(buffer, offset, 10)
	}
	f.out.Buffer = append(buffer, `}}}`...)
	connect.SealEnvelope(f.out.Buffer, mark)
}
