package tree

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

const (
	seekData    = 3
	seekHole    = 4
	blockSize   = 512
	maxExtents  = 65536
	maxOctal    = 0o77777777777
	worthSparse = 64 << 10 // bytes saved before the trouble is taken
)

type extent struct{ offset, length int64 }

// holes returns the stretches of data of a file that has holes worth leaving out, or nil.
func holes(file *os.File, stat *syscall.Stat_t) []extent {
	if stat.Size-stat.Blocks*512 < worthSparse {
		return nil
	}
	extents := []extent{}
	for at := int64(0); at < stat.Size && len(extents) < maxExtents; {
		data, err := file.Seek(at, seekData)
		if err != nil {
			if errno, ok := underlying(err); !ok || errno != syscall.ENXIO {
				extents = nil // no such seek here: send it whole
			}
			break
		}
		hole, err := file.Seek(data, seekHole)
		if err != nil || hole <= data {
			extents = nil
			break
		}
		extents = append(extents, extent{data, min(hole, stat.Size) - data})
		at = hole
	}
	_, _ = file.Seek(0, io.SeekStart)
	if len(extents) >= maxExtents || len(extents) == 1 && extents[0].length >= stat.Size {
		return nil
	}
	return extents
}

func underlying(err error) (syscall.Errno, bool) {
	if failed, ok := err.(*os.PathError); ok {
		errno, ok := failed.Err.(syscall.Errno)
		return errno, ok
	}
	return 0, false
}

// sparse writes a file in GNU's PAX sparse format 1.0, which GNU tar, Python and Go read; archive/tar cannot write it,
// so both headers are made here. https://www.gnu.org/software/tar/manual/html_node/PAX-1.html
func (p *packer) sparse(file *os.File, header *tar.Header, extents []extent) error {
	if last := len(extents) - 1; last < 0 || extents[last].offset+extents[last].length < header.Size {
		extents = append(extents, extent{header.Size, 0}) // tells where the file ends
	}
	sizes := strconv.Itoa(len(extents)) + "\n"
	stored := int64(0)
	for _, e := range extents {
		sizes += strconv.FormatInt(e.offset, 10) + "\n" + strconv.FormatInt(e.length, 10) + "\n"
		stored += e.length
	}
	sizes += strings.Repeat("\x00", padding(int64(len(sizes))))
	stored += int64(len(sizes))

	records := header.PAXRecords
	records["GNU.sparse.major"], records["GNU.sparse.minor"] = "1", "0"
	records["GNU.sparse.name"], records["GNU.sparse.realsize"] = header.Name, strconv.FormatInt(header.Size, 10)
	// No size among them: Python's reader would then look for the next file in the wrong place.
	records["uid"], records["gid"] = strconv.Itoa(header.Uid), strconv.Itoa(header.Gid)
	records["mtime"] = fmt.Sprintf("%d.%09d", header.ModTime.Unix(), header.ModTime.Nanosecond())
	records["uname"], records["gname"] = header.Uname, header.Gname
	extended := paxRecords(records)

	if err := p.tar.Flush(); err != nil {
		return err
	}
	var head bytes.Buffer
	head.Write(rawHeader("PaxHeaders/sparse", 'x', int64(len(extended)), 0o644, 0))
	head.WriteString(extended + strings.Repeat("\x00", padding(int64(len(extended)))))
	// The name here is what programs without this format would make, of the data without its holes.
	head.Write(rawHeader("GNUSparseFile/file", '0', stored, header.Mode, max(0, header.ModTime.Unix())))
	head.WriteString(sizes)
	if _, err := p.out.Write(head.Bytes()); err != nil {
		return err
	}
	for _, e := range extents {
		if e.length == 0 {
			continue
		}
		if err := p.content(p.out, io.NewSectionReader(file, e.offset, e.length), e.length); err != nil {
			return err
		}
	}
	_, err := p.out.Write(make([]byte, padding(stored)))
	return err
}

func padding(size int64) int { return int(-size & (blockSize - 1)) }

// paxRecords encodes "length key=value\n"; the length counts itself.
func paxRecords(records map[string]string) string {
	keys := make([]string, 0, len(records))
	for key := range records {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	var all strings.Builder
	for _, key := range keys {
		rest := " " + key + "=" + records[key] + "\n"
		size := len(rest)
		for size != len(rest)+len(strconv.Itoa(size)) {
			size = len(rest) + len(strconv.Itoa(size))
		}
		all.WriteString(strconv.Itoa(size) + rest)
	}
	return all.String()
}

// rawHeader makes a ustar block; owners are in the extended header.
func rawHeader(name string, kind byte, size, mode, modified int64) []byte {
	block := make([]byte, blockSize)
	copy(block, name)
	copy(block[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00        ", mode&0o7777, 0, 0, size&maxOctal, modified&maxOctal))
	if size > maxOctal { // GNU's base 256
		binary.BigEndian.PutUint64(block[124:], 1<<63)
		binary.BigEndian.PutUint64(block[128:], uint64(size))
	}
	block[156] = kind
	copy(block[257:], "ustar\x0000")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return block
}
