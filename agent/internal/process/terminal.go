package process

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// OpenTerminal makes a pseudo terminal that belongs to uid. The master is non-blocking, the slave is not.
func OpenTerminal(uid uint32, size Size) (master, slave int, err error) {
	master, err = syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("opening /dev/ptmx: %w", err)
	}
	defer func() {
		if err != nil {
			syscall.Close(master)
		}
	}()
	var unlock int32
	if err = ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock)); err != nil {
		return -1, -1, fmt.Errorf("unlocking the terminal: %w", err)
	}
	var number uint32
	if err = ioctl(master, syscall.TIOCGPTN, unsafe.Pointer(&number)); err != nil {
		return -1, -1, fmt.Errorf("numbering the terminal: %w", err)
	}
	name := "/dev/pts/" + strconv.FormatUint(uint64(number), 10)
	slave, err = syscall.Open(name, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("opening %s: %w", name, err)
	}
	// Not fatal: a devpts mounted elsewhere may refuse, and the process has the terminal open anyway.
	_ = os.Chown(name, int(uid), -1)
	_ = resize(master, size)
	return master, slave, nil
}

func resize(master int, size Size) error {
	window := [4]uint16{size.Rows, size.Columns, 0, 0}
	return ioctl(master, syscall.TIOCSWINSZ, unsafe.Pointer(&window))
}

func ioctl(fd int, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}
