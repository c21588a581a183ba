package tree

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sandkeep/agent/internal/account"
)

var owner = account.Account{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}

func archive(t *testing.T, headers ...*tar.Header) *bytes.Buffer {
	t.Helper()
	buffer := &bytes.Buffer{}
	writer := tar.NewWriter(buffer)
	for _, header := range headers {
		content := header.PAXRecords["content"]
		header.PAXRecords, header.Size = nil, int64(len(content))
		if err := writer.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		_, _ = writer.Write([]byte(content))
	}
	writer.Close()
	return buffer
}

func file(name, content string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o4755, PAXRecords: map[string]string{"content": content}}
}

func link(name, target string, kind byte) *tar.Header {
	return &tar.Header{Name: name, Linkname: target, Typeflag: kind, Mode: 0o777}
}

func TestRoundTrip(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "x")
	_ = os.Mkdir(to, 0o755)
	_ = os.MkdirAll(from+"/a/ä"+strings.Repeat("long", 50), 0o750)
	_ = os.WriteFile(from+"/a/file", []byte("content"), 0o640)
	_ = os.Link(from+"/a/file", from+"/a/same")
	_ = os.Symlink("../nowhere", from+"/a/link")
	_ = syscall.Mkfifo(from+"/a/fifo", 0o644)
	attributes := syscall.Setxattr(from+"/a/file", "user.k", []byte("v"), 0) == nil
	sparse, _ := os.Create(from + "/sparse")
	_, _ = sparse.WriteAt([]byte("middle"), 50<<20)
	_ = sparse.Truncate(1 << 30)
	sparse.Close()
	buffer := &bytes.Buffer{}
	packed, err := Pack(buffer, from, PackOptions{Exclude: []string{"*.no"}})
	if err != nil || packed.Skipped != 1 || packed.Files != 4 {
		t.Fatalf("%+v %v", packed, err)
	}
	if buffer.Len() > 4<<20 {
		t.Fatalf("holes were sent: %d bytes", buffer.Len())
	}
	unpacked, err := Unpack(buffer, to, owner, false)
	if err != nil || unpacked.Files != 3 || unpacked.Symlinks != 1 || unpacked.Skipped != 0 {
		t.Fatalf("%+v %v", unpacked, err)
	}
	content, _ := os.ReadFile(to + "/a/same")
	target, _ := os.Readlink(to + "/a/link")
	info, _ := os.Stat(to + "/a/file")
	if string(content) != "content" || target != "../nowhere" || info.Mode().Perm() != 0o640 || info.Sys().(*syscall.Stat_t).Nlink != 2 {
		t.Fatal(string(content), target, info)
	}
	original, _ := os.Stat(from + "/a/file")
	if !original.ModTime().Equal(info.ModTime()) {
		t.Fatal(original.ModTime(), info.ModTime())
	}
	if value := make([]byte, 8); attributes {
		if n, err := syscall.Getxattr(to+"/a/file", "user.k", value); err != nil || string(value[:n]) != "v" {
			t.Fatal(err)
		}
	}
	holed, err := os.Open(to + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	middle := make([]byte, 8)
	_, _ = holed.ReadAt(middle, 50<<20-1)
	info, _ = holed.Stat()
	if string(middle) != "\x00middle\x00" || info.Size() != 1<<30 || info.Sys().(*syscall.Stat_t).Blocks > 1000 {
		t.Fatalf("%q %d %d", middle, info.Size(), info.Sys().(*syscall.Stat_t).Blocks)
	}
}

func TestNothingEscapes(t *testing.T) {
	for name, headers := range map[string][]*tar.Header{
		"absolute":            {file("/escaped", "x")},
		"dots":                {file("a/../../escaped", "x")},
		"through a link":      {link("a", "..", tar.TypeSymlink), file("a/escaped", "x")},
		"through two links":   {link("a", ".", tar.TypeSymlink), link("a/b", "../..", tar.TypeSymlink), file("a/b/escaped", "x")},
		"hard link to a link": {link("a", "../secret", tar.TypeSymlink), link("b", "a", tar.TypeLink)},
		"hard link outside":   {link("b", "../secret", tar.TypeLink)},
		"directory over link": {link("a", "..", tar.TypeSymlink), {Name: "a/escaped/", Typeflag: tar.TypeDir, Mode: 0o755}},
	} {
		outside := t.TempDir()
		_ = os.WriteFile(outside+"/secret", []byte("secret"), 0o600)
		inside := outside + "/in"
		_ = os.Mkdir(inside, 0o755)
		_, err := Unpack(archive(t, headers...), inside, owner, false)
		if _, gone := os.Lstat(outside + "/escaped"); gone == nil || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReplacesAndNeverBlocks(t *testing.T) {
	at := t.TempDir()
	_ = syscall.Mkfifo(at+"/fifo", 0o644)
	_ = os.WriteFile(at+"/target", []byte("kept"), 0o644)
	_ = os.Symlink("target", at+"/link")
	device := &tar.Header{Name: "device", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}
	got, err := Unpack(archive(t, file("fifo", "1"), file("link", "2"), file("new/deep/f", "3"), device), at, owner, false)
	if err != nil || got.Files != 3 || got.Skipped != 1 {
		t.Fatalf("%+v %v", got, err)
	}
	kept, _ := os.ReadFile(at + "/target")
	info, _ := os.Lstat(at + "/link")
	if string(kept) != "kept" || !info.Mode().IsRegular() || info.Mode()&os.ModeSetuid != 0 {
		t.Fatal(string(kept), info.Mode())
	}
}

func TestBrokenArchives(t *testing.T) {
	whole := archive(t, file("f", strings.Repeat("x", 5000))).Bytes()
	for _, broken := range [][]byte{whole[:700], []byte(strings.Repeat("garbage", 200))} {
		if _, err := Unpack(bytes.NewReader(broken), t.TempDir(), owner, false); err == nil {
			t.Error("accepted")
		}
	}
}
