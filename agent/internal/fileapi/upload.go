package fileapi

import (
	"compress/gzip"
	"io"
	"mime"
	"net/http"
	"path/filepath"
	"strings"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/connect"
	"sandkeep/agent/internal/fileinfo"
)

func (s *Service) upload(w http.ResponseWriter, r *http.Request) {
	done, err := s.store(r)
	if err != nil {
		fail(w, err)
		return
	}
	connect.WriteJSON(w, http.StatusOK, done)
}

func (s *Service) store(r *http.Request) ([]written, error) {
	user, err := s.user(r)
	if err != nil {
		return nil, err
	}
	metadata, err := fileinfo.MetadataFrom(r.Header)
	if err != nil {
		return nil, err
	}
	body, err := decoded(r)
	if err != nil {
		return nil, err
	}
	path := r.URL.Query().Get("path")
	kind, parameters, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if !strings.HasPrefix(kind, "multipart/") {
		if path == "" {
			return nil, badRequest("path is required for an octet-stream upload")
		}
		one, err := place(body, path, user, metadata)
		return []written{one}, err
	}
	if parameters["boundary"] == "" {
		return nil, badRequest("multipart upload without a boundary")
	}
	return storeParts(newParts(body, parameters["boundary"]), path, user, metadata)
}

func storeParts(parts *parts, path string, user account.Account, metadata map[string]string) ([]written, error) {
	done := []written{}
	for {
		name, content, err := parts.next()
		if err == io.EOF {
			return done, nil
		}
		if err != nil {
			return nil, badRequest("malformed multipart body: " + err.Error())
		}
		target := name
		if path != "" {
			if len(done) > 0 {
				return nil, badRequest("several files with one path")
			}
			target = path
		}
		if target == "" {
			return nil, badRequest("a part has neither a file name nor is there a path")
		}
		one, err := place(content, target, user, metadata)
		if err != nil {
			return nil, err
		}
		done = append(done, one)
	}
}

// decoded undoes Content-Encoding.
func decoded(r *http.Request) (io.Reader, error) {
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		plain, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, badRequest("the body is not gzip: " + err.Error())
		}
		return &gzipBody{plain}, nil
	}
	return nil, badRequest("unsupported content encoding " + r.Header.Get("Content-Encoding"))
}

// gzipBody turns broken data into the client's fault.
type gzipBody struct{ plain *gzip.Reader }

func (g *gzipBody) Read(p []byte) (int, error) {
	n, err := g.plain.Read(p)
	if err != nil && err != io.EOF {
		err = badRequest("the body is not gzip: " + err.Error())
	}
	return n, err
}

// place resolves a target and writes it.
func place(content io.Reader, target string, user account.Account, metadata map[string]string) (written, error) {
	path, err := user.Resolve(target)
	if err != nil {
		return written{}, err
	}
	if err := fileinfo.MakeDirs(filepath.Dir(path), user); err != nil {
		return written{}, err
	}
	if err := write(content, path, user); err != nil {
		return written{}, err
	}
	if err := fileinfo.SetMetadata(path, metadata); err != nil && len(metadata) > 0 {
		return written{}, err
	}
	return written{Path: path, Name: filepath.Base(path), Type: "file", Metadata: metadata}, nil
}
