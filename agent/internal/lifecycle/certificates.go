package lifecycle

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
)

const (
	caBegin = "# sandkeep-extra begin\n"
	caEnd   = "# sandkeep-extra end\n"
)

// share is a variable for the tests alone.
var share = "/usr/local/share/ca-certificates"

// placeCertificates makes programs trust bundle: the file from which Debian rebuilds its list, and the list itself.
func placeCertificates(bundle string) error {
	extra := filepath.Join(share, "sandkeep-extra.crt")
	list := filepath.Join(etc, "ssl/certs/ca-certificates.crt")
	if bundle == "" {
		_, err := os.Lstat(extra)
		if errors.Is(err, os.ErrNotExist) {
			return nil // never had one
		}
		return errors.Join(remove(extra), placeList(list, nil))
	}
	if bundle[len(bundle)-1] != '\n' {
		bundle += "\n"
	}
	return errors.Join(place(extra, []byte(bundle), 0o644), placeList(list, []byte(caBegin+bundle+caEnd)))
}

func placeList(path string, block []byte) error {
	if len(block) > 0 && endsWith(path, block) {
		return nil
	}
	// Some distributions have a link here. It is read through, and replaced by a file of our own.
	present, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return place(path, append(withoutBlock(present), block...), 0o644)
}

// endsWith looks at the end only: the list has 200 KB and /init runs after every resume.
func endsWith(path string, block []byte) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	if _, err := file.Seek(-int64(len(block)), io.SeekEnd); err != nil {
		return false
	}
	tail := make([]byte, len(block))
	_, err = io.ReadFull(file, tail)
	return err == nil && bytes.Equal(tail, block)
}

func withoutBlock(list []byte) []byte {
	begin := bytes.Index(list, []byte(caBegin))
	if begin < 0 {
		if len(list) > 0 && list[len(list)-1] != '\n' {
			list = append(list, '\n')
		}
		return list
	}
	end := bytes.Index(list[begin:], []byte(caEnd))
	if end < 0 {
		return list[:begin:begin]
	}
	return append(list[:begin:begin], list[begin+end+len(caEnd):]...)
}
