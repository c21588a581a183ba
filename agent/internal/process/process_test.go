package process

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/ring"
	"sandkeep/agent/internal/settings"
)

// One table for all tests: there can be only one reaper in a process.
var table = NewTable(settings.NewStore())

func me() account.Account {
	return account.Account{Name: "me", UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Home: "/", Shell: "/bin/sh"}
}

func shell(script string) Spec {
	return Spec{Command: "/bin/sh", Args: []string{"-c", script}, User: me()}
}

func run(t *testing.T, spec Spec) (*Process, string, Result) {
	t.Helper()
	p, reader, err := table.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p, read(t, reader), await(t, p)
}

func read(t *testing.T, reader *ring.Reader) string {
	t.Helper()
	var text strings.Builder
	for deadline := time.After(20 * time.Second); ; {
		if reader.Take(1<<20, func(_ ring.Stream, _ int64, p []byte) { text.Write(p) }).Ended {
			reader.Detach()
			return text.String()
		}
		select {
		case <-reader.Ready():
		case <-deadline:
			t.Fatalf("no end; so far %q", text.String())
		}
	}
}

func await(t *testing.T, p *Process) Result {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("did not end")
	}
	result, _ := p.Ended()
	return result
}

func TestOutputAndExitCode(t *testing.T) {
	_, output, result := run(t, shell("echo out; echo err >&2; exit 3"))
	if !strings.Contains(output, "out\n") || !strings.Contains(output, "err\n") {
		t.Fatalf("%q", output)
	}
	if result.ExitCode != 3 || !result.Exited || result.Error() != "exit status 3" {
		t.Fatalf("%+v", result)
	}
}

func TestKilled(t *testing.T) {
	p, reader, err := table.Start(shell("echo started; sleep 100 & sleep 100"))
	if err != nil {
		t.Fatal(err)
	}
	<-reader.Ready()
	if err := p.Signal(syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	result := await(t, p)
	if result.ExitCode != -1 || result.Exited || result.Signal != 9 || result.Status != "signal: killed" {
		t.Fatalf("%+v", result)
	}
	if output := read(t, reader); output != "started\n" {
		t.Fatalf("%q", output)
	}
	if err := p.Signal(syscall.SIGTERM, false); err != ErrEnded {
		t.Fatal(err)
	}
}

// A grandchild in a session of its own holds stdout: killing the shell must still end the stream.
func TestKillDoesNotWaitForStrangers(t *testing.T) {
	p, reader, err := table.Start(shell("setsid sleep 30 & echo $!; wait"))
	if err != nil {
		t.Fatal(err)
	}
	<-reader.Ready()
	begin := time.Now()
	_ = p.Signal(syscall.SIGKILL, false)
	await(t, p)
	if time.Since(begin) > 5*time.Second {
		t.Fatal("waited")
	}
	reader.Detach()
	p.KillTree(syscall.SIGKILL)
}

func TestTimeoutKillsTree(t *testing.T) {
	spec := shell("(setsid sleep 31.7 &); sleep 31.7")
	spec.Timeout = 200 * time.Millisecond
	_, _, result := run(t, spec)
	if !result.TimedOut || result.Signal != 9 {
		t.Fatalf("%+v", result)
	}
}

func TestStdin(t *testing.T) {
	if _, output, _ := run(t, shell("cat; echo end")); output != "end\n" {
		t.Fatalf("without stdin: %q", output)
	}
	spec := shell("cat")
	spec.Stdin = true
	p, reader, err := table.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for range 2 {
		if err := p.Write(ctx, []byte("x"), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Write(ctx, nil, true); err != ErrNoTerminal {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.CloseInput(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if output := read(t, reader); output != "xx" {
		t.Fatalf("%q", output)
	}
	await(t, p)
	if err := p.Write(ctx, []byte("x"), false); err != ErrEnded {
		t.Fatal(err)
	}
}

func TestBlockedWriteEndsWithItsContext(t *testing.T) {
	spec := shell("exec sleep 100")
	spec.Stdin = true
	p, reader, err := table.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Detach()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := p.Write(ctx, make([]byte, 1<<20), false); err != context.DeadlineExceeded {
		t.Fatal(err)
	}
	_ = p.Signal(syscall.SIGKILL, false)
	await(t, p)
}

func TestTerminal(t *testing.T) {
	spec := shell("stty size; read line; echo got $line; tty")
	spec.Terminal = &Size{Columns: 101, Rows: 33}
	p, reader, err := table.Start(spec)
	if err != nil {
		t.Skip(err)
	}
	if err := p.Write(context.Background(), []byte("hello\n"), true); err != nil {
		t.Fatal(err)
	}
	output := read(t, reader)
	for _, want := range []string{"33 101", "got hello", "/dev/pts/"} {
		if !strings.Contains(output, want) {
			t.Errorf("%q lacks %q", output, want)
		}
	}
	if err := p.CloseInput(context.Background()); err != ErrTerminal {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	for want, spec := range map[string]Spec{
		"cwd '/no/where' does not exist": {Command: "/bin/true", Dir: "/no/where", User: me()},
		"no such file":                   {Command: "/no/such/program", User: me()},
		"not found in PATH":              {Command: "no-such-program", User: me()},
		"execute it and to enter '/tmp'": {Command: "/etc/passwd", Dir: "/tmp", User: me()},
		"invalid environment":            {Command: "/bin/true", Envs: map[string]string{"A=B": ""}, User: me()},
	} {
		if _, _, err := table.Start(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestEnvironmentIsOurs(t *testing.T) {
	t.Setenv("AGENT_ONLY", "1")
	spec := Spec{Command: "env", Envs: map[string]string{"A": "b"}, User: me()}
	_, output, _ := run(t, spec)
	if strings.Contains(output, "AGENT_ONLY") || !strings.Contains(output, "A=b\n") || !strings.Contains(output, "E2B_SANDBOX=true\n") {
		t.Fatal(output)
	}
}

func TestNoDescriptorsLeak(t *testing.T) {
	SealDescriptors()
	if _, output, _ := run(t, shell("ls /proc/$$/fd")); strings.Join(strings.Fields(output), " ") != "0 1 2" {
		t.Fatalf("%q", output)
	}
}

func TestManyAtOnceAreAllReaped(t *testing.T) {
	failures := make(chan error, 200)
	for range cap(failures) {
		go func() {
			p, reader, err := table.Start(Spec{Command: "/bin/true", User: me()})
			if err == nil {
				reader.Detach()
				<-p.Done()
			}
			failures <- err
		}()
	}
	for range cap(failures) {
		if err := <-failures; err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if table.Live() == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%d still live", table.Live())
}

func TestFamily(t *testing.T) {
	stats := []Stat{{2, 1, 2, 2}, {3, 2, 3, 2}, {4, 3, 4, 4}, {5, 1, 5, 5}, {6, 4, 6, 6}, {7, 1, 7, 2}}
	if got := familyOf(2, stats); len(got) != 5 || got[5] || !got[6] || !got[7] {
		t.Fatal(got)
	}
	if stat, ok := parseStat(9, []byte("9 (a) b (c) S 1 2 3 0")); !ok || stat != (Stat{9, 1, 2, 3}) {
		t.Fatal(stat)
	}
}

// Those that a process leaves behind live on when nobody reads what they write any more.
func TestLeavesOthersBehind(t *testing.T) {
	alive := t.TempDir() + "/alive"
	spec := shell("(sleep 1; echo one; sleep 0.2; echo two; echo yes >" + alive + ") & echo started")
	spec.Leave = true
	p, output, result := run(t, spec)
	if result.ExitCode != 0 || output != "started\n" || result.At.Sub(p.StartedAt) > 500*time.Millisecond {
		t.Fatalf("%+v after %s, output %q", result, result.At.Sub(p.StartedAt), output)
	}
	if _, err := os.Stat(alive); err == nil {
		t.Fatal("waited for the one left behind")
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(alive); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the one left behind died")
		}
	}
}

// More output than the ring holds is not lost to a reader that comes late, though the process has long ended.
func TestLeavingLosesNoOutput(t *testing.T) {
	const size = ring.Max + 60_000
	spec := shell("sleep 3 & head -c " + strconv.Itoa(size) + " /dev/zero")
	spec.Leave = true
	p, reader, err := table.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !p.gone(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not end")
		}
	}
	time.Sleep(2 * outputGrace)
	if output := read(t, reader); len(output) != size {
		t.Fatalf("%d bytes of %d", len(output), size)
	}
	await(t, p)
	p.KillTree(syscall.SIGKILL)
}
