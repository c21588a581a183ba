package tree

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

var zeroBlock [4096]byte

// fill writes content and leaves holes where it has whole pages of zeros.
func (u *unpacker) fill(file *os.File, content io.Reader, size int64) error {
	var at, end int64
	for at < size {
		n, err := io.ReadFull(content, u.copying[:min(size-at, copySize)])
		if written, err := writeAround(file, u.copying[:n], at); err != nil {
			return err
		} else if written > end {
			end = written
		}
		at += int64(n)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
	}
	if end < size {
		return file.Truncate(size)
	}
	return nil
}

// writeAround writes a piece without its zero pages and returns where it last wrote.
func writeAround(file *os.File, piece []byte, at int64) (end int64, err error) {
	for len(piece) > 0 {
		zero := leading(piece, true)
		piece, at = piece[zero:], at+int64(zero)
		data := leading(piece, false)
		if data == 0 {
			continue
		}
		if _, err := file.WriteAt(piece[:data], at); err != nil {
			return end, err
		}
		piece, at = piece[data:], at+int64(data)
		end = at
	}
	return end, nil
}

// leading is the length of the pages at the start that are all zero, or all not.
func leading(piece []byte, zero bool) int {
	length := 0
	for length < len(piece) {
		page := piece[length:min(length+len(zeroBlock), len(piece))]
		if bytes.Equal(page, zeroBlock[:len(page)]) != zero {
			break
		}
		length += len(page)
	}
	return length
}
