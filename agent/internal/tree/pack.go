// Package tree moves whole directories in and out of the sandbox as tar streams.
package tree

import (
	"archive/tar"

	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"sandkeep/agent/internal/account"
)

// PackOptions select what goes in.
type PackOptions struct {
	Exclude       []string // shell globs on the relative name or the base name
	OneFileSystem bool
}

// Packed counts what went in.
type Packed struct{ Files, Skipped int64 }

type inode struct{ device, number uint64 }

type packer struct {
	out     io.Writer
	tar     *tar.Writer
	root    *os.Root
	options PackOptions
	names   *account.Names
	device  uint64
	seen    map[inode]string // files with several names, by the first
	counted Packed
	copying []byte
}

const (
	copySize   = 256 << 10
	paxSkipped = "SANDKEEP.skipped"
	unreadable = "gone, or cannot be read"
)

// Pack writes the tree at path. It never blocks on FIFOs or devices and goes on past what it cannot read, naming it.
// The error is about the writer, or about path itself.
func Pack(out io.Writer, at string, options PackOptions) (Packed, error) {
	info, err := os.Stat(at)
	if err != nil {
		return Packed{}, err
	}
	folder, start := at, "."
	if !info.IsDir() {
		folder, start = filepath.Dir(at), filepath.Base(at)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return Packed{}, err
	}
	defer root.Close()
	p := &packer{out: out, tar: tar.NewWriter(out), root: root, options: options, names: account.NewNames(), seen: map[inode]string{},
		device: info.Sys().(*syscall.Stat_t).Dev, copying: make([]byte, copySize)}
	if err := p.visit(start); err != nil {
		return p.counted, err
	}
	return p.counted, p.tar.Close()
}

func (p *packer) visit(name string) error {
	info, err := p.root.Lstat(name)
	if err != nil {
		return p.skip(name, unreadable)
	}
	stat := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode(); {
	case mode.IsDir():
		return p.directory(name, info, stat)
	case mode.IsRegular():
		return p.file(name, info, stat)
	case mode&fs.ModeSymlink != 0:
		return p.symlink(name, info, stat)
	}
	return p.skip(name, "a socket, a FIFO or a device")
}

// skip names what is left out in a global header, which programs other than ours ignore.
func (p *packer) skip(name, why string) error {
	p.counted.Skipped++
	return p.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "skipped",
		PAXRecords: map[string]string{paxSkipped: name + " is " + why}})
}

func (p *packer) header(name string, info fs.FileInfo, stat *syscall.Stat_t) *tar.Header {
	header := &tar.Header{Name: name, Mode: int64(stat.Mode & 0o7777), Uid: int(stat.Uid), Gid: int(stat.Gid), ModTime: info.ModTime(),
		Uname: p.names.User(stat.Uid), Gname: p.names.Group(stat.Gid), Format: tar.FormatPAX, PAXRecords: map[string]string{}}
	return header
}

func (p *packer) directory(name string, info fs.FileInfo, stat *syscall.Stat_t) error {
	if p.options.OneFileSystem && uint64(stat.Dev) != p.device {
		return nil
	}
	folder, err := p.root.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return p.skip(name, unreadable)
	}
	header := p.header(name+"/", info, stat)
	header.Typeflag = tar.TypeDir
	readAttributes(folder, header.PAXRecords)
	entries, readErr := folder.ReadDir(-1)
	folder.Close()
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	if readErr != nil {
		if err := p.skip(name, unreadable); err != nil {
			return err
		}
	}
	for _, entry := range entries {
		child := path.Join(name, entry.Name())
		if p.excluded(child) {
			continue
		}
		if err := p.visit(child); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) excluded(name string) bool {
	for _, pattern := range p.options.Exclude {
		whole, _ := path.Match(pattern, name)
		base, _ := path.Match(pattern, path.Base(name))
		if whole || base {
			return true
		}
	}
	return false
}

func (p *packer) symlink(name string, info fs.FileInfo, stat *syscall.Stat_t) error {
	target, err := p.root.Readlink(name)
	if err != nil {
		return p.skip(name, unreadable)
	}
	header := p.header(name, info, stat)
	header.Typeflag, header.Linkname = tar.TypeSymlink, target
	p.counted.Files++
	return p.tar.WriteHeader(header)
}

func (p *packer) file(name string, info fs.FileInfo, stat *syscall.Stat_t) error {
	id := inode{uint64(stat.Dev), stat.Ino}
	if first, again := p.seen[id]; again && stat.Nlink > 1 {
		header := p.header(name, info, stat)
		header.Typeflag, header.Linkname = tar.TypeLink, first
		p.counted.Files++
		return p.tar.WriteHeader(header)
	}
	// What Lstat called regular may be a FIFO by now: neither wait for it nor follow a link.
	file, err := p.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return p.skip(name, unreadable)
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil || !info.Mode().IsRegular() {
		return p.skip(name, unreadable)
	}
	stat = info.Sys().(*syscall.Stat_t)
	header := p.header(name, info, stat)
	header.Typeflag, header.Size = tar.TypeReg, info.Size()
	readAttributes(file, header.PAXRecords)
	if stat.Nlink > 1 {
		p.seen[id] = name
	}
	p.counted.Files++
	if extents := holes(file, stat); extents != nil {
		return p.sparse(file, header, extents)
	}
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	return p.content(p.tar, file, info.Size())
}

// content copies exactly size bytes: a file that shrinks meanwhile is filled up with zeros, one that grows is cut.
func (p *packer) content(to io.Writer, from io.Reader, size int64) error {
	failed := &failure{to: to}
	copied, _ := io.CopyBuffer(failed, onlyReader{io.LimitReader(from, size)}, p.copying)
	if failed.err != nil {
		return failed.err
	}
	_, err := io.CopyN(to, zeros{}, size-copied)
	return err
}

// failure remembers that writing failed, which io.Copy does not tell from reading.
type failure struct {
	to  io.Writer
	err error
}

func (f *failure) Write(p []byte) (int, error) {
	n, err := f.to.Write(p)
	f.err = err
	return n, err
}

type onlyReader struct{ io.Reader }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
