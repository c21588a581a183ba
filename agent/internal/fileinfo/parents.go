package fileinfo

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"sandkeep/agent/internal/account"
)

// MakeDirs makes path and what is missing above it, all owned by the user, and leaves what exists alone.
func MakeDirs(path string, user account.Account) error {
	info, err := os.Stat(path)
	if err == nil {
		if info.IsDir() {
			return nil
		}
		return &os.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := MakeDirs(parent, user); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil // somebody else was faster
		}
		return err
	}
	return os.Lchown(path, int(user.UID), int(user.GID))
}
