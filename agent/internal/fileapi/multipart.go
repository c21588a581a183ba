package fileapi

import (
	"io"
	"mime"
	"mime/multipart"
)

// parts walks over the file parts of a multipart body.
type parts struct{ reader *multipart.Reader }

func newParts(body io.Reader, boundary string) *parts {
	return &parts{multipart.NewReader(body, boundary)}
}

// next skips other form fields. The standard library cuts file names to their last element, and E2B's clients send
// whole paths, so the header is parsed here.
func (p *parts) next() (name string, content io.Reader, err error) {
	for {
		part, err := p.reader.NextRawPart()
		if err != nil {
			return "", nil, err
		}
		if part.FormName() != "file" {
			continue
		}
		_, parameters, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil {
			return "", nil, err
		}
		return parameters["filename"], part, nil
	}
}
