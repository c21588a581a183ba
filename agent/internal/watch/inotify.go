// Package watch turns the kernel's inotify into E2B's file events, for one directory or a whole tree.
package watch

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"
)

// Kinds of events, as E2B names them.
const (
	Create = "EVENT_TYPE_CREATE"
	Write  = "EVENT_TYPE_WRITE"
	Remove = "EVENT_TYPE_REMOVE"
	Rename = "EVENT_TYPE_RENAME"
	Chmod  = "EVENT_TYPE_CHMOD"
)

const mask = syscall.IN_CREATE | syscall.IN_MOVED_TO | syscall.IN_MOVED_FROM | syscall.IN_MODIFY | syscall.IN_ATTRIB |
	syscall.IN_DELETE | syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF

// ErrOverflow says that events were lost in the kernel's queue.
var ErrOverflow = errors.New("too many file events at once; some were lost")

// Event is one change; Name is relative to the watched directory.
type Event struct{ Name, Kind string }

// notifier is one inotify instance on one directory.
type notifier struct {
	file      *os.File
	root      string
	recursive bool
	folders   map[int32]string // watch descriptor -> path relative to root
	// reported are entries of new directories found by looking, whose own event may still be queued, with the number
	// of the batch that was being handled then.
	reported map[string]int
	batch    int
}

func newNotifier(root string, recursive bool) (*notifier, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	n := &notifier{file: os.NewFile(uintptr(fd), "inotify"), root: root, recursive: recursive, folders: map[int32]string{}, reported: map[string]int{}}
	if err := n.add("", nil); err != nil {
		n.file.Close()
		return nil, err
	}
	return n, nil
}

// add watches a folder, and the folders in it if recursive. With found, it also reports what is in there already: those
// entries were made before the kernel was asked to watch.
func (n *notifier) add(folder string, found func(Event)) error {
	path := filepath.Join(n.root, folder)
	// Not through the File: Fd() would make it blocking.
	var watch int
	err := n.control(func(fd int) (err error) {
		watch, err = syscall.InotifyAddWatch(fd, path, mask|syscall.IN_ONLYDIR)
		return err
	})
	if err != nil {
		return &os.PathError{Op: "watch", Path: path, Err: err}
	}
	n.folders[int32(watch)] = folder
	if !n.recursive {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil // it vanished, which the kernel reports
	}
	for _, entry := range entries {
		name := filepath.Join(folder, entry.Name())
		if found != nil {
			n.reported[name] = n.batch
			found(Event{name, Create})
		}
		if entry.IsDir() {
			if err := n.add(name, found); errors.Is(err, syscall.ENOSPC) {
				return err
			}
		}
	}
	return nil
}

func (n *notifier) control(call func(fd int) error) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	failure := err
	if err := raw.Control(func(fd uintptr) { failure = call(int(fd)) }); err != nil {
		return err
	}
	return failure
}

// read waits for events and hands each to emit; it returns when the notifier is closed or broken.
func (n *notifier) read(emit func(Event)) error {
	buffer := make([]byte, 16<<10)
	for {
		size, err := n.file.Read(buffer)
		if err != nil {
			return err
		}
		n.batch++
		for at := 0; at+syscall.SizeofInotifyEvent <= size; {
			raw := (*syscall.InotifyEvent)(unsafe.Pointer(&buffer[at]))
			at += syscall.SizeofInotifyEvent
			name := buffer[at : at+int(raw.Len)]
			at += int(raw.Len)
			if raw.Mask&syscall.IN_Q_OVERFLOW != 0 {
				return ErrOverflow
			}
			if err := n.handle(raw.Wd, raw.Mask, zeroTerminated(name), emit); err != nil {
				return err
			}
		}
		if size < len(buffer)/2 {
			// The queue was emptied, so what an earlier batch reported cannot come again.
			maps.DeleteFunc(n.reported, func(_ string, batch int) bool { return batch < n.batch })
		}
	}
}

func (n *notifier) handle(watch int32, what uint32, name string, emit func(Event)) error {
	folder, known := n.folders[watch]
	if !known {
		return nil
	}
	if what&syscall.IN_IGNORED != 0 {
		delete(n.folders, watch)
		return nil
	}
	if what&(syscall.IN_DELETE_SELF|syscall.IN_MOVE_SELF) != 0 {
		return n.selfGone(watch, folder, what, emit)
	}
	if folder != "" && name == "" {
		return nil // an attribute of a watched subfolder, which its parent's watch reports, too
	}
	name = relative(folder, name)
	kind := kindOf(what)
	if _, seen := n.reported[name]; seen && kind == Create {
		delete(n.reported, name)
		return nil
	}
	if kind != "" {
		emit(Event{name, kind})
	}
	if n.recursive && kind == Create && what&syscall.IN_ISDIR != 0 {
		if err := n.add(name, emit); errors.Is(err, syscall.ENOSPC) {
			return err
		}
	}
	return nil
}

// selfGone handles a watched folder that was deleted or moved; a subfolder's parent reports that itself.
func (n *notifier) selfGone(watch int32, folder string, what uint32, emit func(Event)) error {
	if what&syscall.IN_MOVE_SELF != 0 && folder != "" {
		// Its path is another now, perhaps outside: stop watching. If it is still inside, it has been added anew
		// under its new name, with the same descriptor.
		if _, err := os.Lstat(filepath.Join(n.root, folder)); err != nil {
			delete(n.folders, watch)
			_ = n.control(func(fd int) error { _, err := syscall.InotifyRmWatch(fd, uint32(watch)); return err })
		}
		return nil
	}
	if folder == "" {
		emit(Event{".", map[bool]string{true: Remove, false: Rename}[what&syscall.IN_DELETE_SELF != 0]})
	}
	return nil
}

// relative names an entry; the watched directory itself is ".".
func relative(folder, name string) string {
	if joined := filepath.Join(folder, name); joined != "" {
		return joined
	}
	return "."
}

func kindOf(what uint32) string {
	switch {
	case what&(syscall.IN_CREATE|syscall.IN_MOVED_TO) != 0:
		return Create
	case what&syscall.IN_DELETE != 0:
		return Remove
	case what&syscall.IN_MODIFY != 0:
		return Write
	case what&syscall.IN_MOVED_FROM != 0:
		return Rename
	case what&syscall.IN_ATTRIB != 0:
		return Chmod
	}
	return ""
}

func zeroTerminated(name []byte) string {
	for i, c := range name {
		if c == 0 {
			return string(name[:i])
		}
	}
	return string(name)
}
