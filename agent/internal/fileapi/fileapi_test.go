package fileapi

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sandkeep/agent/internal/settings"
)

func service() http.Handler {
	store := settings.NewStore()
	store.Set(&settings.Settings{DefaultUser: "root"})
	mux := http.NewServeMux()
	New(store).Register(mux)
	return mux
}

func send(method, path, body string, header map[string]string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, "/files?path="+url.QueryEscape(path), strings.NewReader(body))
	for name, value := range header {
		request.Header.Set(name, value)
	}
	recorder := httptest.NewRecorder()
	service().ServeHTTP(recorder, request)
	return recorder
}

func TestNegotiate(t *testing.T) {
	for accepted, want := range map[string]string{
		"": "identity", "gzip": "gzip", "identity": "identity", "gzip;q=0": "identity", "br": "identity", "*": "gzip",
		"gzip;q=0.1, identity;q=0.5": "identity", "identity;q=0": "", "*;q=0": "", "gzip, identity;q=0": "gzip", "deflate, gzip;q=1.0": "gzip",
	} {
		if got, ok := negotiate(http.Header{"Accept-Encoding": {accepted}}); got != want || ok != (want != "") {
			t.Errorf("%q: %q, want %q", accepted, got, want)
		}
	}
	if got, _ := negotiate(http.Header{"Accept-Encoding": {"gzip"}, "Range": {"bytes=0-1"}}); got != "identity" {
		t.Error("a range was compressed")
	}
}

func TestUploadAndDownload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep/er/ä b.txt")
	if got := send("POST", path, "hello", map[string]string{"Content-Type": "application/octet-stream"}); got.Code != 200 {
		t.Fatal(got.Code, got.Body)
	}
	if got := send("GET", path, "", nil); got.Body.String() != "hello" || got.Header().Get("Content-Length") != "5" {
		t.Fatal(got.Code, got.Body, got.Header())
	}
	if got := send("GET", path, "", map[string]string{"Range": "bytes=1-2"}); got.Code != 206 || got.Body.String() != "el" {
		t.Fatal(got.Code, got.Body)
	}
	if got := send("GET", path, "", map[string]string{"Accept-Encoding": "identity;q=0"}); got.Code != 406 {
		t.Fatal(got.Code)
	}
	if got := send("POST", path, "not gzip", map[string]string{"Content-Encoding": "gzip"}); got.Code != 400 {
		t.Fatal(got.Code)
	}
	if content, _ := os.ReadFile(path); string(content) != "hello" {
		t.Fatalf("a refused upload changed the file: %q", content)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path string
		status       int
		message      string
	}{
		{"GET", dir + "/none", 404, "path '" + dir + "/none' does not exist"}, {"GET", dir, 400, "is a directory"},
		{"GET", fifo, 400, "not a regular file"}, {"POST", fifo, 400, ""}, {"POST", dir, 400, "is a directory"}, {"GET", "/dev/zero", 400, "not a regular"},
		{"POST", fifo + "/x", 400, ""},
	} {
		if got := send(c.method, c.path, "x", nil); got.Code != c.status || !strings.Contains(got.Body.String(), c.message) {
			t.Errorf("%+v: %d %s", c, got.Code, got.Body)
		}
	}
}

func TestMultipartKeepsWholePaths(t *testing.T) {
	dir := t.TempDir()
	body := strings.ReplaceAll("--b\nContent-Disposition: form-data; name=\"file\"; filename=\""+dir+"/x/one\"\n\n1\n--b\n"+
		"Content-Disposition: form-data; name=\"file\"; filename=\""+dir+"/two\"\n\n22\n--b--\n", "\n", "\r\n")
	if got := send("POST", "", body, map[string]string{"Content-Type": "multipart/form-data; boundary=b"}); got.Code != 200 {
		t.Fatal(got.Code, got.Body)
	}
	one, _ := os.ReadFile(dir + "/x/one")
	two, _ := os.ReadFile(dir + "/two")
	if string(one) != "1" || string(two) != "22" {
		t.Fatalf("%q %q", one, two)
	}
}

func TestProcFilesHaveContent(t *testing.T) {
	if got := send("GET", "/proc/self/status", "", nil); !strings.Contains(got.Body.String(), "Pid:") {
		t.Fatal(got.Code, got.Body)
	}
}
