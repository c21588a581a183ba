package tree

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"sandkeep/agent/internal/account"
)

// Unpacked counts what came out.
type Unpacked struct {
	Files    int64 `json:"files"`
	Dirs     int64 `json:"dirs"`
	Symlinks int64 `json:"symlinks"`
	Bytes    int64 `json:"bytes"`
	Skipped  int64 `json:"skipped"`
}

// ErrArchive is wrapped by errors that are the archive's fault.
var ErrArchive = errors.New("bad archive")

type unpacker struct {
	root       *os.Root
	user       account.Account
	keepOwners bool
	counted    Unpacked
	folders    []folderTime
	copying    []byte
}

// folderTime is set last, because making files in a folder changes it.
type folderTime struct {
	name     string
	modified time.Time
	mode     fs.FileMode
}

// maxFolders bounds what is remembered to set times at the end; folders beyond it get the present time.
const maxFolders = 200_000

// Unpack extracts a tar stream under path, which must be a directory. os.Root opens every component relative to the
// one before and refuses to leave, so neither names nor links in the archive, nor somebody who changes the tree
// meanwhile, can direct a write elsewhere.
func Unpack(in io.Reader, at string, user account.Account, keepOwners bool) (Unpacked, error) {
	root, err := os.OpenRoot(at)
	if err != nil {
		return Unpacked{}, err
	}
	defer root.Close()
	u := &unpacker{root: root, user: user, keepOwners: keepOwners, copying: make([]byte, copySize)}
	archive := tar.NewReader(in)
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.counted, fmt.Errorf("%w: %w", ErrArchive, err)
		}
		if err := u.entry(header, archive); err != nil {
			return u.counted, fmt.Errorf("%s: %w", header.Name, err)
		}
	}
	for _, folder := range u.folders {
		_ = root.Chmod(folder.name, folder.mode)
		_ = root.Chtimes(folder.name, time.Time{}, folder.modified)
	}
	return u.counted, nil
}

// clean refuses names that try to leave, rather than to guess what was meant.
func clean(name string) (string, error) {
	if strings.HasPrefix(name, "/") || strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: absolute name", ErrArchive)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: name with ..", ErrArchive)
		}
	}
	return path.Clean(name), nil
}

func (u *unpacker) entry(header *tar.Header, content io.Reader) error {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(header.Name)
	if err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(name, header)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(name, header, content)
	case tar.TypeSymlink:
		return u.symlink(name, header)
	case tar.TypeLink:
		return u.hardLink(name, header)
	}
	u.counted.Skipped++
	return nil
}

func (u *unpacker) owner(header *tar.Header) (uid, gid int) {
	if u.keepOwners {
		return header.Uid, header.Gid
	}
	return int(u.user.UID), int(u.user.GID)
}

// mode drops setuid and setgid unless owners are kept, too: they are only meant together.
func (u *unpacker) mode(header *tar.Header) fs.FileMode {
	mode := fs.FileMode(header.Mode).Perm()
	if header.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	if u.keepOwners && header.Mode&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	if u.keepOwners && header.Mode&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	return mode
}

// parents makes what is missing above name.
func (u *unpacker) parents(name string) error {
	parent := path.Dir(name)
	if parent == "." {
		return nil
	}
	if info, err := u.root.Stat(parent); err == nil && info.IsDir() {
		return nil
	}
	if err := u.parents(parent); err != nil {
		return err
	}
	if err := u.root.Mkdir(parent, 0o755); err != nil {
		return err
	}
	return u.root.Lchown(parent, int(u.user.UID), int(u.user.GID))
}

// vacate removes whatever stands where something else shall be; a full directory stays and is an error later.
func (u *unpacker) vacate(name string) error {
	if name == "." {
		return fmt.Errorf("%w: the root is a directory", ErrArchive)
	}
	if err := u.parents(name); err != nil {
		return err
	}
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (u *unpacker) directory(name string, header *tar.Header) error {
	if name != "." {
		if info, err := u.root.Lstat(name); err != nil || !info.IsDir() {
			if err := u.vacate(name); err != nil {
				return err
			}
			if err := u.root.Mkdir(name, 0o700); err != nil {
				return err
			}
		}
		uid, gid := u.owner(header)
		if err := u.root.Lchown(name, uid, gid); err != nil {
			return err
		}
		if len(u.folders) < maxFolders {
			u.folders = append(u.folders, folderTime{name, header.ModTime, u.mode(header)})
		} else if err := u.root.Chmod(name, u.mode(header)); err != nil {
			return err
		}
	}
	u.counted.Dirs++
	return nil
}

func (u *unpacker) symlink(name string, header *tar.Header) error {
	if err := u.vacate(name); err != nil {
		return err
	}
	if err := u.root.Symlink(header.Linkname, name); err != nil {
		return err
	}
	u.counted.Symlinks++
	uid, gid := u.owner(header)
	return u.root.Lchown(name, uid, gid)
}

func (u *unpacker) hardLink(name string, header *tar.Header) error {
	target, err := clean(header.Linkname)
	if err != nil {
		return err
	}
	// A link to a link could name something outside; only files that are really here can be linked.
	if info, err := u.root.Lstat(target); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%w: hard link to '%s', which is no file here", ErrArchive, header.Linkname)
	}
	if target == name {
		return nil
	}
	if err := u.vacate(name); err != nil {
		return err
	}
	u.counted.Files++
	return u.root.Link(target, name)
}

func (u *unpacker) file(name string, header *tar.Header, content io.Reader) error {
	if name == "." {
		return fmt.Errorf("%w: the root is a directory", ErrArchive)
	}
	if err := u.parents(name); err != nil {
		return err
	}
	// Beside what is there, which stays if the stream breaks off or the disk is full. O_EXCL: a file of our own making,
	// never something that was put there meanwhile.
	part := path.Join(path.Dir(name), ".sandkeep-"+rand.Text()+".part")
	file, err := u.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer u.root.Remove(part)
	defer file.Close()
	if err := u.fill(file, content, header.Size); err != nil {
		return err
	}
	uid, gid := u.owner(header)
	if err := file.Chown(uid, gid); err != nil {
		return err
	}
	if err := file.Chmod(u.mode(header)); err != nil {
		return err
	}
	writeAttributes(file, header.PAXRecords)
	if err := file.Close(); err != nil {
		return err
	}
	u.counted.Files++
	u.counted.Bytes += header.Size
	if err := u.root.Chtimes(part, time.Time{}, header.ModTime); err != nil {
		return err
	}
	if info, err := u.root.Lstat(name); err == nil && info.IsDir() {
		if err := u.vacate(name); err != nil {
			return err
		}
	}
	return u.root.Rename(part, name)
}
