package fileinfo

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
)

// Metadata of a file lives in extended attributes with this prefix.
const (
	attributePrefix = "user.e2b."
	headerPrefix    = "X-Metadata-"
	maxKey          = 246
	maxTotal        = 4096
)

// ErrMetadata says what is wrong with metadata headers.
var ErrMetadata = errors.New("invalid metadata")

// Metadata reads a file's; where the file system has no attributes, there is none.
func Metadata(path string) map[string]string {
	size, err := syscall.Listxattr(path, nil)
	if err != nil || size <= 0 {
		return nil
	}
	list := make([]byte, size)
	if size, err = syscall.Listxattr(path, list); err != nil {
		return nil
	}
	var found map[string]string
	for _, raw := range bytes.Split(list[:size], []byte{0}) {
		name, ours := strings.CutPrefix(string(raw), attributePrefix)
		if !ours {
			continue
		}
		value := make([]byte, maxTotal)
		length, err := syscall.Getxattr(path, string(raw), value)
		if err != nil {
			continue
		}
		if found == nil {
			found = map[string]string{}
		}
		found[name] = string(value[:length])
	}
	return found
}

// MetadataFrom reads the headers of an upload.
func MetadataFrom(header http.Header) (map[string]string, error) {
	metadata, total := map[string]string{}, 0
	for name, values := range header {
		key, ours := strings.CutPrefix(name, headerPrefix)
		if !ours {
			continue
		}
		key, value := strings.ToLower(key), values[0]
		total += len(key) + len(value)
		switch {
		case key == "" || len(key) > maxKey:
			return nil, fmt.Errorf("%w: a key must have 1 to %d bytes", ErrMetadata, maxKey)
		case !printable(key) || !printable(value):
			return nil, fmt.Errorf("%w: only printable ASCII is allowed in '%s'", ErrMetadata, key)
		case total > maxTotal:
			return nil, fmt.Errorf("%w: more than %d bytes", ErrMetadata, maxTotal)
		}
		metadata[key] = value
	}
	return metadata, nil
}

func printable(text string) bool {
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// SetMetadata replaces a file's metadata as a whole.
func SetMetadata(path string, metadata map[string]string) error {
	for key := range Metadata(path) {
		if _, stays := metadata[key]; !stays {
			_ = syscall.Removexattr(path, attributePrefix+key)
		}
	}
	for key, value := range metadata {
		if err := syscall.Setxattr(path, attributePrefix+key, []byte(value), 0); err != nil {
			return fmt.Errorf("storing metadata: %w", err)
		}
	}
	return nil
}
