package account

import (
	"errors"
	"path/filepath"
	"strings"
)

// ErrPath says that a path cannot be one.
var ErrPath = errors.New("invalid path")

// Resolve makes a client's path absolute: `~`, `~/x` and anything relative start at the user's home.
func (a Account) Resolve(path string) (string, error) {
	switch {
	case strings.IndexByte(path, 0) >= 0:
		return "", ErrPath
	case path == "" || path == "~":
		return filepath.Clean(a.Home), nil
	case strings.HasPrefix(path, "~/"):
		return filepath.Join(a.Home, path[2:]), nil
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	default:
		return filepath.Join(a.Home, path), nil
	}
}
