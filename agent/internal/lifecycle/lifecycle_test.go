package lifecycle

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// elsewhere points /etc, /run and the rest into a folder of the test.
func elsewhere(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	oldEtc, oldRun, oldShare, oldState := etc, run, share, state
	etc, run, share = filepath.Join(dir, "etc"), filepath.Join(dir, "run"), filepath.Join(dir, "share")
	state = filepath.Join(dir, "state")
	t.Cleanup(func() { etc, run, share, state = oldEtc, oldRun, oldShare, oldState })
	return dir
}

func text(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestPlaceReplacesLinksAndLeavesEqualFilesAlone(t *testing.T) {
	dir := t.TempDir()
	victim, path := dir+"/victim", dir+"/new/file"
	if err := place(path, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(path)
	_ = place(path, []byte("1"), 0o644)
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Fatal("written although equal")
	}
	_ = os.WriteFile(victim, []byte("kept"), 0o644)
	_ = os.Remove(path)
	_ = os.Symlink(victim, path)
	if err := place(path, []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if text(t, victim) != "kept" || text(t, path) != "2" {
		t.Fatal("followed a link")
	}
	_ = os.Remove(path)
	_ = syscall.Mkfifo(path, 0o644)
	if err := place(path, []byte("3"), 0o644); err != nil || text(t, path) != "3" {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir + "/new"); len(entries) != 1 {
		t.Fatal("leftovers", entries)
	}
}

func TestHosts(t *testing.T) {
	first := hostsWith("127.0.0.1 localhost\n# named\n", "named")
	if first != "127.0.0.1 localhost\n# named\n127.0.1.1 named # sandkeep\n" {
		t.Fatalf("%q", first)
	}
	if again := hostsWith(first, "named"); again != first {
		t.Fatalf("%q", again)
	}
	if renamed := hostsWith(first, "other"); strings.Count(renamed, "sandkeep") != 1 || !strings.Contains(renamed, "127.0.1.1 other") {
		t.Fatalf("%q", renamed)
	}
	if known := hostsWith("10.0.0.2 named\n", "named"); known != "10.0.0.2 named\n" {
		t.Fatalf("%q", known)
	}
	for _, name := range []string{"", "-x", "a b", "a\nb", strings.Repeat("x", 65)} {
		if hostname.MatchString(name) {
			t.Errorf("%q passed", name)
		}
	}
}

func TestCertificates(t *testing.T) {
	elsewhere(t)
	list := filepath.Join(etc, "ssl/certs/ca-certificates.crt")
	_ = os.MkdirAll(filepath.Dir(list), 0o755)
	_ = os.WriteFile(list, []byte("system\n"), 0o644)
	for _, bundle := range []string{"one\n", "one\n", "two"} {
		if err := placeCertificates(bundle); err != nil {
			t.Fatal(err)
		}
	}
	if got := text(t, list); got != "system\n"+caBegin+"two\n"+caEnd {
		t.Fatalf("%q", got)
	}
	if err := placeCertificates(""); err != nil || text(t, list) != "system\n" {
		t.Fatalf("%v %q", err, text(t, list))
	}
}

func TestIdentityFiles(t *testing.T) {
	elsewhere(t)
	if err := placeMachineID(); err != nil {
		t.Fatal(err)
	}
	id := text(t, filepath.Join(etc, "machine-id"))
	if _ = placeMachineID(); len(id) != 33 || text(t, filepath.Join(etc, "machine-id")) != id {
		t.Fatalf("%q", id)
	}
	if err := becomeAnother(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if next := text(t, filepath.Join(etc, "machine-id")); len(next) != 33 || next == id {
		t.Fatalf("%q after %q", next, id)
	}
	if err := placeResolvers([]string{"10.0.0.1", "10.0.0.2"}); err != nil || text(t, filepath.Join(etc, "resolv.conf")) != "nameserver 10.0.0.1\nnameserver 10.0.0.2\n" {
		t.Fatal(err)
	}
	if placeResolvers([]string{"x\noptions evil"}) == nil {
		t.Fatal("injected")
	}
}

func TestBecomingAnotherReplacesHostKeys(t *testing.T) {
	elsewhere(t)
	for _, name := range []string{"ssh/ssh_host_rsa_key", "ssh/ssh_host_rsa_key.pub", "ssh/sshd_config"} {
		if err := place(filepath.Join(etc, name), []byte("of the other\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if becomeAnother(func() error { return errors.New("no keys") }) == nil {
		t.Fatal("keys were not made, and that was no failure")
	}
	if left, _ := filepath.Glob(filepath.Join(etc, "ssh/*")); len(left) != 1 {
		t.Fatal(left)
	}
	asked := false
	if err := becomeAnother(func() error { asked = true; return nil }); err != nil || asked {
		t.Fatal("where there are no keys, none are made", err)
	}
}

func TestBecomingItselfAgain(t *testing.T) {
	elsewhere(t)
	for _, name := range []string{"machine-id", "ssh/ssh_host_rsa_key", "ssh/ssh_host_ed25519_key", "ssh/sshd_config"} {
		if err := place(filepath.Join(etc, name), []byte("of the fork\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own := identity{"machine-id": []byte("mine\n"), "ssh_host_ed25519_key": []byte("key\n"), "ssh_host_ed25519_key.pub": []byte("pub\n"), "../../evil": []byte("x")}
	if err := becomeItself(own); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"machine-id": "mine\n", "ssh/ssh_host_ed25519_key": "key\n", "ssh/ssh_host_ed25519_key.pub": "pub\n", "ssh/sshd_config": "of the fork\n"} {
		if got := text(t, filepath.Join(etc, name)); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(etc, "ssh/*")); len(left) != 3 {
		t.Error(left)
	}
	if err := becomeItself(identity{}); err != nil || len(text(t, filepath.Join(etc, "machine-id"))) != 33 {
		t.Error(err)
	}
}

func TestMoment(t *testing.T) {
	want := time.Unix(1767323045, 500_000_000)
	for _, raw := range []string{`"2026-01-02T03:04:05.5Z"`, `1767323045.5`, `"1767323045.5"`} {
		var got moment
		if err := json.Unmarshal([]byte(raw), &got); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v %v", raw, got.UTC(), err)
		}
	}
	var none moment
	if json.Unmarshal([]byte(`null`), &none) != nil || !none.IsZero() {
		t.Error(none)
	}
}

func TestDeletedLink(t *testing.T) {
	dir := t.TempDir()
	var disk syscall.Stat_t
	_ = syscall.Stat(dir, &disk)
	link := func(file *os.File) string { return "/proc/self/fd/" + itoa(int(file.Fd())) }
	for name, deleted := range map[string]bool{"plain": false, "gone": true, "called (deleted)": false} {
		file, _ := os.Create(filepath.Join(dir, name))
		defer file.Close()
		if deleted {
			_ = os.Remove(file.Name())
		}
		path, got := deletedLink(link(file), uint64(disk.Dev))
		if got != deleted || deleted && path != file.Name() {
			t.Errorf("%s: %s %v", name, path, got)
		}
		if _, elsewhere := deletedLink(link(file), uint64(disk.Dev)+1); elsewhere {
			t.Errorf("%s: counted on another disk", name)
		}
	}
	if got := deviceName(0x0811); got != "08:11" {
		t.Error(got)
	}
}

func itoa(n int) string { text, _ := json.Marshal(n); return string(text) }
