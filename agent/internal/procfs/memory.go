// Package procfs reads what the guard and the metrics need from /proc, cheaply enough to be asked often.
package procfs

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// Memory is in bytes.
type Memory struct{ Total, Available, Free, Cached int64 }

// MemoryReader keeps /proc/meminfo open: one system call per look. Not safe for concurrent use.
type MemoryReader struct {
	fd     int
	buffer [4096]byte
}

// NewMemoryReader opens the file.
func NewMemoryReader() (*MemoryReader, error) {
	fd, err := syscall.Open("/proc/meminfo", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/meminfo", Err: err}
	}
	return &MemoryReader{fd: fd}, nil
}

// Close gives the descriptor back.
func (m *MemoryReader) Close() { syscall.Close(m.fd) }

// Read looks again.
func (m *MemoryReader) Read() (Memory, error) {
	// Raw, since it never blocks: an ordinary call wakes the Go runtime's monitor thread, which then spins for a
	// while. In gVisor that is several times the cost of the look itself.
	size, _, errno := syscall.RawSyscall6(syscall.SYS_PREAD64, uintptr(m.fd), uintptr(unsafe.Pointer(&m.buffer)), uintptr(len(m.buffer)), 0, 0, 0)
	if errno != 0 {
		return Memory{}, errno
	}
	return parseMemory(m.buffer[:size]), nil
}

func parseMemory(text []byte) Memory {
	return Memory{Total: field(text, "MemTotal:"), Available: field(text, "MemAvailable:"), Free: field(text, "MemFree:"),
		Cached: field(text, "Cached:")}
}

// field finds a line "Name:   123 kB" without allocating.
func field(text []byte, name string) int64 {
	at := bytes.Index(text, []byte(name))
	for at > 0 && text[at-1] != '\n' { // Cached is also the end of SwapCached
		next := bytes.Index(text[at+1:], []byte(name))
		if next < 0 {
			return 0
		}
		at += 1 + next
	}
	if at < 0 {
		return 0
	}
	value := int64(0)
	for _, c := range text[at+len(name):] {
		if c >= '0' && c <= '9' {
			value = value*10 + int64(c-'0')
		} else if c != ' ' && c != '\t' {
			break
		}
	}
	return value << 10
}

// ResidentBytes is the memory of one process.
func ResidentBytes(pid int) int64 {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize())
}

// Name is what a process calls itself.
func Name(pid int) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}
