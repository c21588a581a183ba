// Package elevate makes `sudo` work where the kernel honours no set-user-ID bit, as gVisor's does not: the agent, which is
// root, runs the real sudo for an account that sudoers lets run anything without a password. `sudo` is then this very
// binary under another name, and hands over its descriptors, environment and folder.
package elevate

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

const (
	// In the abstract namespace: no file that somebody could replace.
	address    = "@sandkeep-sudo"
	realSudo   = "/usr/bin/sudo"
	maxMessage = 4 << 20
	headSize   = 4
	standard   = 3 // descriptors

	prGetNoNewPrivs = 39
)

// request is what the client asks for; its standard descriptors come with it.
type request struct {
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	Terminal bool     `json:"terminal"`
	Columns  uint16   `json:"columns"`
	Rows     uint16   `json:"rows"`
}

// reply is sent once when it started (with the terminal's master end, if asked for) or was refused, and once when it ended.
type reply struct {
	Error string `json:"error,omitempty"`
	Ended bool   `json:"ended,omitempty"`
	Code  int    `json:"code,omitempty"`
}

// Needed tells whether the kernel keeps processes from gaining privileges by exec.
func Needed() bool {
	set, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prGetNoNewPrivs, 0, 0, 0, 0, 0)
	return errno == 0 && set == 1
}

// send carries descriptors and, as the kernel vouches for them, the sender's credentials (gVisor answers SO_PEERCRED with
// those of whoever asks).
func send(connection *net.UnixConn, message any, descriptors ...int) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return errors.New("arguments and environment are too long")
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	rights := syscall.UnixCredentials(&syscall.Ucred{
		Pid: int32(os.Getpid()), Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())})
	if len(descriptors) > 0 {
		rights = append(rights, syscall.UnixRights(descriptors...)...)
	}
	if _, _, err := connection.WriteMsgUnix(head, rights, nil); err != nil {
		return err
	}
	_, err = connection.Write(body)
	return err
}

// received is what came beside a message. sender: nil when the kernel did not say.
type received struct {
	descriptors []int
	sender      *syscall.Ucred
}

// receive: the caller closes the descriptors, also after an error.
func receive(connection *net.UnixConn, message any) (received, error) {
	head := make([]byte, headSize)
	rights := make([]byte, syscall.CmsgSpace(4*standard)+syscall.CmsgSpace(syscall.SizeofUcred))
	n, size, _, _, err := connection.ReadMsgUnix(head, rights)
	beside := parse(rights[:size])
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil {
		_, err = io.ReadFull(connection, head[n:])
	}
	if err != nil {
		return beside, err
	}
	length := binary.BigEndian.Uint32(head)
	if length > maxMessage {
		return beside, errors.New("the message is too long")
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(connection, body); err != nil {
		return beside, err
	}
	return beside, json.Unmarshal(body, message)
}

func parse(rights []byte) (beside received) {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil {
		return beside
	}
	for index := range messages {
		if found, err := syscall.ParseUnixRights(&messages[index]); err == nil {
			beside.descriptors = append(beside.descriptors, found...)
		}
		if found, err := syscall.ParseUnixCredentials(&messages[index]); err == nil {
			beside.sender = found
		}
	}
	for _, fd := range beside.descriptors {
		syscall.CloseOnExec(fd)
	}
	return beside
}

func closeAll(descriptors []int) {
	for _, fd := range descriptors {
		syscall.Close(fd)
	}
}
