package fileapi

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxUnsized bounds files that do not tell their size, such as those in /proc.
const maxUnsized = 16 << 20

func (s *Service) download(w http.ResponseWriter, r *http.Request) {
	user, err := s.user(r)
	if err != nil {
		fail(w, err)
		return
	}
	path, err := user.Resolve(r.URL.Query().Get("path"))
	if err != nil {
		fail(w, err)
		return
	}
	if path == bootIDPath && s.bootID != "" {
		serve(w, r, path, time.Time{}, strings.NewReader(s.bootID))
		return
	}
	file, info, err := openRegular(path)
	if err != nil {
		fail(w, err)
		return
	}
	defer file.Close()
	content, err := seekable(file, info)
	if err != nil {
		fail(w, err)
		return
	}
	serve(w, r, path, info.ModTime(), content)
}

// seekable reads files that claim to be empty, since those of /proc do so whatever they hold.
func seekable(file *os.File, info fs.FileInfo) (io.ReadSeeker, error) {
	if info.Size() > 0 {
		return file, nil
	}
	content, err := io.ReadAll(io.LimitReader(file, maxUnsized))
	return bytes.NewReader(content), err
}

func serve(w http.ResponseWriter, r *http.Request, path string, modified time.Time, content io.ReadSeeker) {
	header := w.Header()
	name := filepath.Base(path)
	header.Set("Vary", "Accept-Encoding")
	header.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": name}))
	if header.Get("Content-Disposition") == "" {
		header.Set("Content-Disposition", "inline")
	}
	encoding, ok := negotiate(r.Header)
	if !ok {
		fail(w, &problem{http.StatusNotAcceptable, "no acceptable encoding; available are gzip and identity"})
		return
	}
	if encoding != "gzip" {
		http.ServeContent(w, r, name, modified, content)
		return
	}
	kind := mime.TypeByExtension(filepath.Ext(name))
	if kind == "" {
		kind = "application/octet-stream"
	}
	header.Set("Content-Type", kind)
	header.Set("Content-Encoding", "gzip")
	if r.Method == http.MethodHead {
		return
	}
	// Speed over size: the reader is usually on the same machine or one hop away.
	squeezed, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if _, err := io.Copy(squeezed, content); err != nil {
		panic(http.ErrAbortHandler) // a cut answer must not look complete
	}
	_ = squeezed.Close()
}
