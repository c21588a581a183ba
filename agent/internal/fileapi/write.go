package fileapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"sandkeep/agent/internal/account"
)

// bufferSize is the largest file that is written in one piece, which watchers see as one event.
const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// write stores content in path. What fits into the buffer: open, fchown, write; E2B's clients count the three events that
// this makes. What does not is written beside it and takes its place when it is whole: an upload that breaks off, or meets
// a full disk, leaves what was there.
func write(content io.Reader, path string, user account.Account) error {
	buffer := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	size, readErr := fill(content, buffer[:])
	if readErr != nil && readErr != io.EOF {
		return bodyError(readErr)
	}
	if readErr == nil {
		return replace(content, buffer, path, user)
	}
	file, err := openForWriting(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Chown(int(user.UID), int(user.GID)); err != nil {
		return err
	}
	if size > 0 {
		if _, err := file.Write(buffer[:size]); err != nil {
			return err
		}
	}
	return file.Close()
}

// replace goes on with a full buffer. An existing file keeps its mode; of a link, what it leads to is replaced.
func replace(content io.Reader, buffer *[bufferSize]byte, path string, user account.Account) error {
	mode := os.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		if err := regular(path, info); err != nil {
			return err
		}
		mode = info.Mode().Perm()
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	part, err := os.CreateTemp(filepath.Dir(path), ".sandkeep-*.part")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	defer part.Close()
	for size, readErr := bufferSize, error(nil); ; size, readErr = fill(content, buffer[:]) {
		if readErr != nil && readErr != io.EOF {
			return bodyError(readErr)
		}
		if _, err := part.Write(buffer[:size]); err != nil {
			return err
		}
		if readErr == io.EOF {
			break
		}
	}
	if err := errors.Join(part.Chown(int(user.UID), int(user.GID)), part.Chmod(mode), part.Close()); err != nil {
		return err
	}
	return os.Rename(part.Name(), path)
}

// fill reads until the buffer is full. The error is io.EOF only at the end of content: a body that breaks off has another.
func fill(content io.Reader, buffer []byte) (int, error) {
	size := 0
	for size < len(buffer) {
		n, err := content.Read(buffer[size:])
		size += n
		if err != nil {
			return size, err
		}
	}
	return size, nil
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
	if err == nil {
		err = regular(path, info)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func regular(path string, info os.FileInfo) error {
	if info.IsDir() {
		return badRequest("path '" + path + "' is a directory")
	}
	if !info.Mode().IsRegular() {
		return badRequest("path '" + path + "' is not a regular file")
	}
	return nil
}

func bodyError(err error) error {
	var known *problem
	if errors.As(err, &known) {
		return err
	}
	return &problem{http.StatusBadRequest, fmt.Sprintf("reading the body: %v", err)}
}
