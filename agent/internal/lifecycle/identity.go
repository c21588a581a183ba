package lifecycle

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// etc and run are variables for the tests alone.
var (
	etc   = "/etc"
	run   = "/run"
	state = "/var/lib"
)

const hostsMark = "# sandkeep"

var hostKey = regexp.MustCompile(`^ssh_host_[a-z0-9]+_key(\.pub)?$`)

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)

// setHostname tells the kernel and the two files that programs ask.
func setHostname(name string) error {
	if !hostname.MatchString(name) {
		return errors.New("hostname: not a host name")
	}
	if present, err := os.Hostname(); err != nil || present != name {
		if err := syscall.Sethostname([]byte(name)); err != nil {
			return os.NewSyscallError("sethostname", err)
		}
	}
	return errors.Join(place(filepath.Join(etc, "hostname"), []byte(name+"\n"), 0o644), placeHosts(name))
}

func placeHosts(name string) error {
	path := filepath.Join(etc, "hosts")
	present, err := readPlain(path)
	if err != nil || len(bytes.TrimSpace(present)) == 0 {
		present = []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	}
	return place(path, []byte(hostsWith(string(present), name)), 0o644)
}

// hostsWith replaces our line, or adds it unless the name is known already.
func hostsWith(present, name string) string {
	var kept []string
	for _, line := range strings.Split(strings.TrimRight(present, "\n"), "\n") {
		if strings.HasSuffix(line, hostsMark) {
			continue
		}
		kept = append(kept, line)
	}
	known := false
	for _, line := range kept {
		names, _, _ := strings.Cut(line, "#")
		for i, word := range strings.Fields(names) {
			known = known || i > 0 && word == name
		}
	}
	if !known {
		kept = append(kept, "127.0.1.1 "+name+" "+hostsMark)
	}
	return strings.Join(kept, "\n") + "\n"
}

// placeMachineID gives images that were made without an id one of their own.
func placeMachineID() error {
	if present, err := readPlain(filepath.Join(etc, "machine-id")); err == nil && len(bytes.TrimSpace(present)) > 0 && string(present) != "uninitialized\n" {
		return nil
	}
	return placeNewMachineID()
}

func placeNewMachineID() error {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return placeMachineIDs([]byte(hex.EncodeToString(id[:]) + "\n"))
}

func placeMachineIDs(content []byte) error {
	// D-Bus keeps a copy where it is no link.
	if _, err := readPlain(filepath.Join(state, "dbus/machine-id")); err == nil {
		if err := place(filepath.Join(state, "dbus/machine-id"), content, 0o444); err != nil {
			return err
		}
	}
	return place(filepath.Join(etc, "machine-id"), content, 0o444)
}

// becomeAnother replaces what must not be twice in the world, on a disk that is a copy of another sandbox's. Host keys
// that were there are made anew.
func becomeAnother(makeHostKeys func() error) error {
	if err := placeNewMachineID(); err != nil {
		return err
	}
	keys, err := filepath.Glob(filepath.Join(etc, "ssh/ssh_host_*_key*"))
	if err != nil || len(keys) == 0 {
		return err
	}
	for _, key := range keys {
		if err := remove(key); err != nil {
			return err
		}
	}
	return makeHostKeys()
}

// identity is what a sandbox is known by, as its disk had it: contents by name, of machine-id and of SSH host keys.
type identity map[string][]byte

// becomeItself puts the sandbox's own identity on a disk that came from another one's.
func becomeItself(own identity) error {
	id := own["machine-id"]
	if len(id) == 0 {
		if err := placeNewMachineID(); err != nil {
			return err
		}
	} else if err := placeMachineIDs(id); err != nil {
		return err
	}
	keys, err := filepath.Glob(filepath.Join(etc, "ssh/ssh_host_*_key*"))
	if err != nil {
		return err
	}
	for _, key := range keys {
		if _, stays := own[filepath.Base(key)]; !stays {
			if err := remove(key); err != nil {
				return err
			}
		}
	}
	for name, content := range own {
		if !hostKey.MatchString(name) {
			continue
		}
		mode := os.FileMode(0o600)
		if strings.HasSuffix(name, ".pub") {
			mode = 0o644
		}
		if err := place(filepath.Join(etc, "ssh", name), content, mode); err != nil {
			return err
		}
	}
	return nil
}

func placeResolvers(servers []string) error {
	text := ""
	for _, server := range servers {
		if server == "" || strings.ContainsAny(server, " \t\r\n") {
			return errors.New("dns: not an address")
		}
		text += "nameserver " + server + "\n"
	}
	return place(filepath.Join(etc, "resolv.conf"), []byte(text), 0o644)
}

// placeSandboxID mirrors the id into the files where E2B's tools look.
func placeSandboxID(id string) error {
	return errors.Join(place(filepath.Join(run, "e2b/.E2B_SANDBOX"), []byte("true"), 0o644),
		place(filepath.Join(run, "e2b/.E2B_SANDBOX_ID"), []byte(id), 0o644))
}
