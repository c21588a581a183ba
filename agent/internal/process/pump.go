package process

import (
	"io"
	"os"
	"syscall"
	"time"

	"sandkeep/agent/internal/ring"
)

const smallRead = 4 << 10

// pump moves one descriptor's bytes into the ring until its end, or until interrupt. It reads straight into the ring's
// memory and waits in the runtime's poller, so an idle process costs no buffer and no thread.
func pump(o output, to *ring.Ring) {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		to.WaitForSpace(o.stream)
		n, err := 0, error(nil)
		step := func(fd uintptr) bool {
			n, err = to.Fill(o.stream, func(p []byte) (int, error) { return retry(int(fd), p) })
			return err != syscall.EAGAIN
		}
		if waitErr := raw.Read(step); waitErr != nil {
			if os.IsTimeout(waitErr) {
				drain(raw, o.stream, to)
			}
			return
		}
		// A terminal answers EIO when its last user has gone.
		if err != ring.ErrFull && (n <= 0 || err != nil) {
			return
		}
	}
}

// drain takes what was already written, for a process that has ended while somebody else holds its output open.
// Bounded, since that somebody may go on writing.
func drain(raw syscall.RawConn, stream ring.Stream, to *ring.Ring) {
	for taken := 0; taken < ring.Max; {
		to.WaitForSpace(stream)
		n, err := 0, error(nil)
		_ = raw.Control(func(fd uintptr) {
			n, err = to.Fill(stream, func(p []byte) (int, error) { return retry(int(fd), p) })
		})
		if err != ring.ErrFull && (n <= 0 || err != nil) {
			return
		}
		taken += max(n, 0)
	}
}

// discard reads on for those whom the process left behind: a closed pipe would kill them at their next line.
func discard(file *os.File) {
	_ = file.SetReadDeadline(time.Time{})
	_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{file}, make([]byte, smallRead))
}

// interrupt makes pumps stop waiting for more.
func interrupt(outputs []output) {
	for _, o := range outputs {
		_ = o.file.SetReadDeadline(time.Unix(1, 0))
	}
}

func retry(fd int, p []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
