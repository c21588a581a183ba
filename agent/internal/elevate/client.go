package elevate

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"
)

const lastOutput = 500 * time.Millisecond

// Client is `sudo`: it returns the exit status.
func Client(args []string) int {
	if !Needed() || os.Geteuid() == 0 {
		err := syscall.Exec(realSudo, append([]string{"sudo"}, args...), os.Environ())
		return fail(fmt.Errorf("%s: %w", realSudo, err))
	}
	connection, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return fail(fmt.Errorf("the agent does not answer: %w", err))
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	asked := request{Args: args, Env: os.Environ(), Dir: dir}
	before, interactive := attributes(0)
	if _, out := attributes(1); interactive && out {
		asked.Terminal = true
		asked.Columns, asked.Rows = size()
	}
	if err := send(connection, asked, 0, 1, 2); err != nil {
		return fail(err)
	}
	var answer reply
	beside, err := receive(connection, &answer)
	if err == nil && answer.Error != "" {
		err = fmt.Errorf("%s", answer.Error)
	}
	if err != nil {
		return fail(err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGALRM, syscall.SIGWINCH)
	master := -1
	if len(beside.descriptors) == 1 {
		master = beside.descriptors[0]
	}
	go passOn(connection, signals, master)
	shown := make(chan struct{})
	if master >= 0 {
		raw := before
		makeRaw(&raw)
		_ = ioctl(0, syscall.TCSETS, unsafe.Pointer(&raw))
		defer func() { _ = ioctl(0, syscall.TCSETS, unsafe.Pointer(&before)) }()
		_ = syscall.SetNonblock(master, true)
		terminal := os.NewFile(uintptr(master), "terminal")
		go func() { _, _ = io.Copy(terminal, os.Stdin) }()
		go func() { _, _ = io.Copy(os.Stdout, terminal); close(shown) }()
	} else {
		close(shown)
		// Ours are closed, so that readers see the end of the command's output and not of ours.
		for fd := range 2 {
			syscall.Close(fd)
		}
	}
	if _, err := receive(connection, &answer); err != nil || !answer.Ended {
		return fail(fmt.Errorf("the agent went away"))
	}
	select {
	case <-shown:
	case <-time.After(lastOutput): // something in the background still has the terminal
	}
	return answer.Code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "sudo:", err)
	return 1
}

func passOn(connection *net.UnixConn, signals <-chan os.Signal, master int) {
	for received := range signals {
		number := received.(syscall.Signal)
		if number == syscall.SIGWINCH {
			if master >= 0 {
				columns, rows := size()
				window := [4]uint16{rows, columns, 0, 0}
				_ = ioctl(master, syscall.TIOCSWINSZ, unsafe.Pointer(&window))
			}
			continue
		}
		_, _ = connection.Write([]byte{byte(number)})
	}
}

// attributes tells whether fd is a terminal, and its settings.
func attributes(fd int) (found syscall.Termios, ok bool) {
	ok = ioctl(fd, syscall.TCGETS, unsafe.Pointer(&found)) == nil
	return found, ok
}

func size() (columns, rows uint16) {
	var window [4]uint16
	if ioctl(0, syscall.TIOCGWINSZ, unsafe.Pointer(&window)) != nil {
		return 80, 24
	}
	return window[1], window[0]
}

// makeRaw is cfmakeraw(3).
func makeRaw(t *syscall.Termios) {
	t.Iflag &^= syscall.IGNBRK | syscall.BRKINT | syscall.PARMRK | syscall.ISTRIP | syscall.INLCR | syscall.IGNCR | syscall.ICRNL | syscall.IXON
	t.Oflag &^= syscall.OPOST
	t.Lflag &^= syscall.ECHO | syscall.ECHONL | syscall.ICANON | syscall.ISIG | syscall.IEXTEN
	t.Cflag &^= syscall.CSIZE | syscall.PARENB
	t.Cflag |= syscall.CS8
	t.Cc[syscall.VMIN], t.Cc[syscall.VTIME] = 1, 0
}

func ioctl(fd int, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}
