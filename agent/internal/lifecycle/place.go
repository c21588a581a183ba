// Package lifecycle prepares the sandbox: after boot, before a memory snapshot, after a restore.
package lifecycle

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const maxPlaced = 8 << 20

// readPlain reads a regular file; a link or a FIFO in its place is as good as nothing.
func readPlain(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, syscall.EINVAL
	}
	return io.ReadAll(io.LimitReader(file, maxPlaced))
}

// place makes path hold content, if it does not yet. A symlink there is replaced, never followed.
func place(path string, content []byte, mode os.FileMode) error {
	if present, err := readPlain(path); err == nil && bytes.Equal(present, content) {
		return nil
	}
	temporary, err := writeBeside(path, content, mode)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			temporary, err = writeBeside(path, content, mode)
		}
	}
	if err != nil {
		return err
	}
	if err = os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary)
	}
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) {
		return overwrite(path, content) // a mount point cannot be replaced
	}
	return err
}

func writeBeside(path string, content []byte, mode os.FileMode) (string, error) {
	var suffix [6]byte
	_, _ = rand.Read(suffix[:])
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+hex.EncodeToString(suffix[:]))
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return "", err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Chmod(mode)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(temporary)
		return "", err
	}
	return temporary, nil
}

func overwrite(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.Write(content)
	return err
}

// remove is fine with nothing being there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
