package elevate

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/process"
)

const (
	requestWithin = 10 * time.Second
	most          = 256 // at once
	link          = "/usr/local/bin/sudo"
	ownBinary     = "/.sandkeep/agent"
)

// Serve answers until the sandbox ends. For the agent as pid 1, where it is Needed.
func Serve(reaper *process.Reaper) error {
	if _, err := os.Stat(realSudo); err == nil {
		if _, err := os.Lstat(link); os.IsNotExist(err) {
			_ = os.Symlink(ownBinary, link) // a full disk has none
		}
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return err
	}
	places := make(chan struct{}, most)
	for {
		connection, err := listener.AcceptUnix()
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors: some come back
			continue
		}
		places <- struct{}{}
		go func() {
			defer func() { connection.Close(); <-places }()
			serve(connection, reaper)
		}()
	}
}

func serve(connection *net.UnixConn, reaper *process.Reaper) {
	_ = connection.SetReadDeadline(time.Now().Add(requestWithin))
	if askForSender(connection) != nil {
		return
	}
	var asked request
	beside, err := receive(connection, &asked)
	descriptors := beside.descriptors
	defer func() { closeAll(descriptors) }()
	if err != nil || len(descriptors) != standard || beside.sender == nil {
		return
	}
	who, err := account.Find(strconv.FormatUint(uint64(beside.sender.Uid), 10))
	if err == nil {
		err = allowed(who, reaper)
	}
	if err != nil {
		_ = send(connection, reply{Error: err.Error()})
		return
	}
	ended := make(chan syscall.WaitStatus, 1)
	files, handed := descriptors, []int(nil)
	if asked.Terminal {
		master, slave, err := process.OpenTerminal(0, process.Size{Columns: asked.Columns, Rows: asked.Rows})
		if err != nil {
			_ = send(connection, reply{Error: err.Error()})
			return
		}
		defer syscall.Close(master)
		defer syscall.Close(slave)
		files, handed = []int{slave, slave, slave}, []int{master}
	}
	attributes := &syscall.ProcAttr{Dir: asked.Dir, Env: asked.Env, Files: make([]uintptr, 0, standard),
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: asked.Terminal}}
	for _, fd := range files {
		attributes.Files = append(attributes.Files, uintptr(fd))
	}
	pid, err := reaper.Spawn(realSudo, append([]string{"sudo"}, asked.Args...), attributes, func(s syscall.WaitStatus) { ended <- s })
	if err != nil {
		_ = send(connection, reply{Error: err.Error()})
		return
	}
	process.Unshield(pid)
	_ = connection.SetReadDeadline(time.Time{})
	_ = send(connection, reply{}, handed...)
	closeAll(descriptors) // whoever reads the other end sees the end when the command closes its own
	descriptors = nil
	go follow(connection, reaper, pid)
	_ = send(connection, endOf(<-ended))
}

// follow passes signals on, one a byte. When the client is gone, so is what it started.
func follow(connection *net.UnixConn, reaper *process.Reaper, pid int) {
	number := make([]byte, 1)
	for {
		if _, err := io.ReadFull(connection, number); err != nil {
			if reaper.Signal(pid, true, syscall.SIGKILL) == nil {
				process.SignalTree(pid, syscall.SIGKILL)
			}
			return
		}
		_ = reaper.Signal(pid, true, syscall.Signal(number[0]))
	}
}

func endOf(status syscall.WaitStatus) reply {
	if status.Signaled() {
		return reply{Ended: true, Code: 128 + int(status.Signal())}
	}
	return reply{Ended: true, Code: status.ExitStatus()}
}

// askForSender makes the kernel say who sends what is read from now on.
func askForSender(connection *net.UnixConn) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
	})
	return errors.Join(err, failure)
}
