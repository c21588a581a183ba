package account

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func databases(t *testing.T, passwd, group string) {
	t.Helper()
	dir := t.TempDir()
	oldPasswd, oldGroup := PasswdFile, GroupFile
	PasswdFile, GroupFile = filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	t.Cleanup(func() { PasswdFile, GroupFile = oldPasswd, oldGroup })
	for path, text := range map[string]string{PasswdFile: passwd, GroupFile: group} {
		if text != "" {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestFind(t *testing.T) {
	databases(t, "# comment\nroot:x:0:0:root:/root:/bin/bash\nbroken\nuser:x:1000:1000::/home/user:\nbad:x:-1:0::/:/bin/sh\n",
		"root:x:0:\nsudo:x:27:other,user\nuser:x:1000:user\nuser2:x:1001:user2\n")
	user, err := Find("user")
	want := Account{Name: "user", UID: 1000, GID: 1000, Home: "/home/user", Shell: "/bin/sh", Groups: []uint32{1000, 27}}
	if err != nil || !reflect.DeepEqual(user, want) {
		t.Fatalf("%+v %v", user, err)
	}
	if byID, err := Find("1000"); err != nil || byID.Name != "user" {
		t.Fatalf("%+v %v", byID, err)
	}
	for _, name := range []string{"bad", "nobody", "broken", ""} {
		if _, err := Find(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if fallback := FindOrRoot("nobody"); fallback.Name != "root" || fallback.Shell != "/bin/bash" {
		t.Fatalf("%+v", fallback)
	}
}

func TestNoDatabase(t *testing.T) {
	databases(t, "", "")
	if user := FindOrRoot("user"); user.UID != 0 || user.Home != "/root" {
		t.Fatalf("%+v", user)
	}
}

func TestResolve(t *testing.T) {
	user := Account{Home: "/home/user"}
	for path, want := range map[string]string{
		"": "/home/user", "~": "/home/user", "~/a/../b": "/home/user/b", "x": "/home/user/x",
		"/a//b/": "/a/b", "../..": "/", "~other": "/home/user/~other", "/..": "/",
	} {
		if got, err := user.Resolve(path); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", path, got, err, want)
		}
	}
	if _, err := user.Resolve("a\x00b"); err == nil {
		t.Error("a NUL byte passed")
	}
}
