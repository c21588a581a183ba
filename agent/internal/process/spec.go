package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/settings"
)

// ErrRefused is wrapped by errors that are the caller's fault.
var ErrRefused = errors.New("")

// defaultPath is Debian's for root; users get sbin too, as E2B's do.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Size is a terminal's.
type Size struct{ Columns, Rows uint16 }

// Spec is what a client asked to run.
type Spec struct {
	Command  string
	Args     []string
	Envs     map[string]string
	Dir      string
	Tag      string
	Terminal *Size
	Stdin    bool
	Detached bool
	Leave    bool          // it has ended when its own process has, even if children that it left behind hold its output open
	Timeout  time.Duration // 0 is none
	User     account.Account
}

// directory finds the working directory and makes sure that it is one, so that a failing exec is about the command.
func (s *Spec) directory(defaults *settings.Settings) (string, error) {
	if s.Dir != "" {
		dir, err := s.User.Resolve(s.Dir)
		if err == nil && !isDirectory(dir) {
			err = fmt.Errorf("%wcwd '%s' does not exist", ErrRefused, dir)
		}
		return dir, err
	}
	for _, candidate := range []string{defaults.DefaultWorkdir, s.User.Home} {
		if candidate == "" {
			continue
		}
		if dir, err := s.User.Resolve(candidate); err == nil && isDirectory(dir) {
			return dir, nil
		}
	}
	return "/", nil
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// environment is built from nothing: whatever the agent itself was given stays with the agent, PATH excepted.
func (s *Spec) environment(defaults *settings.Settings) map[string]string {
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	env := map[string]string{
		"PATH": path, "HOME": s.User.Home, "USER": s.User.Name, "LOGNAME": s.User.Name, "SHELL": s.User.Shell,
		"E2B_SANDBOX": "true",
	}
	if defaults.SandboxID != "" {
		env["E2B_SANDBOX_ID"] = defaults.SandboxID
	}
	for name, value := range defaults.EnvVars {
		env[name] = value
	}
	for name, value := range s.Envs {
		env[name] = value
	}
	return env
}

func flatten(env map[string]string) ([]string, error) {
	flat := make([]string, 0, len(env))
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.IndexByte(value, 0) >= 0 {
			return nil, fmt.Errorf("%winvalid environment variable %q", ErrRefused, name)
		}
		flat = append(flat, name+"="+value)
	}
	sort.Strings(flat)
	return flat, nil
}

// executable finds the command's file as execvp would.
func (s *Spec) executable(path, dir string) (string, error) {
	if s.Command == "" {
		return "", fmt.Errorf("%wcmd is empty", ErrRefused)
	}
	if strings.Contains(s.Command, "/") {
		return s.Command, nil
	}
	for _, folder := range filepath.SplitList(path) {
		if !filepath.IsAbs(folder) {
			folder = filepath.Join(dir, folder)
		}
		candidate := filepath.Join(folder, s.Command)
		if info, err := os.Stat(candidate); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("%werror starting process '%s': executable file not found in PATH", ErrRefused, s.Command)
}

// credential is nil when the process runs as the agent does, which saves the system calls.
func (s *Spec) credential() *syscall.Credential {
	user := s.User
	if int(user.UID) == os.Geteuid() && int(user.GID) == os.Getegid() && len(user.Groups) <= 1 {
		return nil
	}
	return &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: user.Groups}
}
