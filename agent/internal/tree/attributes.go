package tree

import (
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// paxAttribute is the name under which tar programs keep extended attributes.
const (
	paxAttribute  = "SCHILY.xattr."
	userNamespace = "user."
	maxAttribute  = 64 << 10
)

// readAttributes adds a file's user.* attributes to its PAX records. Through the descriptor, so that no name is looked
// up twice; the syscall package has only the calls by path.
func readAttributes(file *os.File, records map[string]string) {
	var list [4096]byte
	size := attributeCall(syscall.SYS_FLISTXATTR, file, "", list[:])
	if size <= 0 {
		return
	}
	for _, name := range strings.Split(string(list[:size]), "\x00") {
		if !strings.HasPrefix(name, userNamespace) || strings.ContainsRune(name, '=') {
			continue
		}
		value := make([]byte, maxAttribute)
		if size := attributeCall(syscall.SYS_FGETXATTR, file, name, value); size >= 0 {
			records[paxAttribute+name] = string(value[:size])
		}
	}
}

// writeAttributes sets the user.* ones of PAX records; a file system without attributes loses them.
func writeAttributes(file *os.File, records map[string]string) {
	for record, value := range records {
		if name, ours := strings.CutPrefix(record, paxAttribute); ours && strings.HasPrefix(name, userNamespace) {
			attributeCall(syscall.SYS_FSETXATTR, file, name, []byte(value))
		}
	}
}

func attributeCall(call uintptr, file *os.File, name string, buffer []byte) int {
	zeroTerminated, err := syscall.BytePtrFromString(name)
	if err != nil {
		return -1
	}
	var data unsafe.Pointer
	if len(buffer) > 0 {
		data = unsafe.Pointer(&buffer[0])
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return -1
	}
	result := -1
	_ = raw.Control(func(fd uintptr) {
		var n uintptr
		var errno syscall.Errno
		if call == syscall.SYS_FLISTXATTR {
			n, _, errno = syscall.Syscall(call, fd, uintptr(data), uintptr(len(buffer)))
		} else {
			n, _, errno = syscall.Syscall6(call, fd, uintptr(unsafe.Pointer(zeroTerminated)), uintptr(data), uintptr(len(buffer)), 0, 0)
		}
		if errno == 0 {
			result = int(n)
		}
	})
	return result
}
