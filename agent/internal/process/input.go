package process

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// What can be wrong with input.
var (
	ErrNoInput     = errors.New("the process was started without stdin")
	ErrNoTerminal  = errors.New("the process has no terminal")
	ErrInputClosed = errors.New("stdin is closed")
	ErrTerminal    = errors.New("cannot close the stdin of a terminal")
	ErrEnded       = errors.New("the process has ended")
)

// input is the writing side of stdin or of a terminal. One writer at a time: a message is never torn by another.
type input struct {
	file     *os.File
	terminal bool
	turn     chan struct{}
	closed   bool // guarded by turn
}

func newInput(file *os.File, terminal bool) *input {
	if file == nil {
		return nil
	}
	return &input{file: file, terminal: terminal, turn: make(chan struct{}, 1)}
}

// write blocks while the process does not read, until ctx ends; a process that never reads costs its client, not us.
func (i *input) write(ctx context.Context, data []byte) error {
	if err := i.take(ctx); err != nil {
		return err
	}
	defer func() { <-i.turn }()
	if i.closed {
		return ErrInputClosed
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = i.file.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	_, err := i.file.Write(data)
	if !stop() {
		<-fired // else its deadline could hit the next write
		_ = i.file.SetWriteDeadline(time.Time{})
	}
	switch {
	case errors.Is(err, syscall.EPIPE), errors.Is(err, fs.ErrClosed), errors.Is(err, syscall.EIO):
		return ErrEnded
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

func (i *input) close(ctx context.Context) error {
	if i.terminal {
		return ErrTerminal
	}
	if err := i.take(ctx); err != nil {
		return err
	}
	defer func() { <-i.turn }()
	i.closed = true
	_ = i.file.Close()
	return nil
}

func (i *input) take(ctx context.Context) error {
	select {
	case i.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// abandon closes stdin without waiting for a turn: a blocked writer wakes with an error.
// A terminal's file belongs to its pump.
func (i *input) abandon() {
	if i != nil && !i.terminal {
		_ = i.file.Close()
	}
}
