// Package fileinfo describes files as E2B's filesystem service does.
package fileinfo

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"sandkeep/agent/internal/account"
)

// The types that E2B knows; sockets and the like have none.
const (
	TypeFile      = "FILE_TYPE_FILE"
	TypeDirectory = "FILE_TYPE_DIRECTORY"
	TypeSymlink   = "FILE_TYPE_SYMLINK"
)

// Entry is an EntryInfo message.
type Entry struct {
	Name          string            `json:"name"`
	Type          string            `json:"type,omitempty"`
	Path          string            `json:"path"`
	Size          int64             `json:"size"`
	Mode          uint32            `json:"mode"`
	Permissions   string            `json:"permissions"`
	Owner         string            `json:"owner"`
	Group         string            `json:"group"`
	ModifiedTime  time.Time         `json:"modifiedTime"`
	SymlinkTarget string            `json:"symlinkTarget,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty"`
}

// Describe looks at path itself; of a symlink, type, mode and size are its target's, as E2B's clients expect.
func Describe(path string, names *account.Names) (*Entry, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return describe(path, info, names), nil
}

func describe(path string, info fs.FileInfo, names *account.Names) *Entry {
	entry := &Entry{Name: filepath.Base(path), Path: path, Permissions: info.Mode().String(), ModifiedTime: info.ModTime().UTC()}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		entry.Owner, entry.Group = names.User(owner.Uid), names.Group(owner.Gid)
	}
	shown := info
	if info.Mode()&fs.ModeSymlink != 0 {
		entry.Type = TypeSymlink
		if target, err := filepath.EvalSymlinks(path); err == nil {
			entry.SymlinkTarget = target
			if pointed, err := os.Stat(path); err == nil {
				shown = pointed
			}
		} else if target, err := os.Readlink(path); err == nil {
			entry.SymlinkTarget = target
		}
	}
	switch mode := shown.Mode(); {
	case mode.IsRegular():
		entry.Type = TypeFile
		entry.Metadata = Metadata(path)
	case mode.IsDir():
		entry.Type = TypeDirectory
	}
	entry.Mode, entry.Size = uint32(shown.Mode().Perm()), shown.Size()
	return entry
}
