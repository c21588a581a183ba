package fileapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"syscall"

	"sandkeep/agent/internal/account"
)

// bufferSize is the largest file that is written in one piece, which watchers see as one event.
const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// write stores content in path: open, fchown, write. E2B's clients count the three events that this makes.
// An existing file keeps its inode and mode.
func write(content io.Reader, path string, user account.Account) error {
	buffer := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	// Read before the file is touched: a client that fails at once must not have emptied it.
	size, readErr := io.ReadFull(content, buffer[:])
	if readErr != nil && readErr != io.EOF && readErr != io.ErrUnexpectedEOF {
		return bodyError(readErr)
	}
	file, err := openForWriting(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Chown(int(user.UID), int(user.GID)); err != nil {
		return err
	}
	for {
		if size > 0 {
			if _, err := file.Write(buffer[:size]); err != nil {
				return err
			}
		}
		if readErr != nil {
			break
		}
		size, readErr = io.ReadFull(content, buffer[:])
	}
	if readErr != io.EOF && readErr != io.ErrUnexpectedEOF {
		return bodyError(readErr)
	}
	return file.Close()
}

func openForWriting(path string) (*os.File, error) {
	// Non-blocking: a FIFO in the place must be an error, not a wait.
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o644)
	if errors.Is(err, syscall.EISDIR) {
		return nil, badRequest("path '" + path + "' is a directory")
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = badRequest("path '" + path + "' is not a regular file")
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func bodyError(err error) error {
	var known *problem
	if errors.As(err, &known) {
		return err
	}
	return &problem{http.StatusBadRequest, fmt.Sprintf("reading the body: %v", err)}
}
