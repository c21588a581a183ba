package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestHooksRunByNameAndTheFirstFailureEnds(t *testing.T) {
	old := hooks
	hooks = t.TempDir()
	t.Cleanup(func() { hooks = old })
	later := time.Now().Add(time.Minute)
	var ran []string
	run := func(path string, env []string, patience time.Duration) error {
		ran = append(ran, filepath.Base(path)+" "+strings.Join(env, ","))
		if patience <= 0 || patience > time.Minute {
			t.Errorf("patience %v", patience)
		}
		if strings.HasSuffix(path, "50-bad") {
			return errors.New("bad")
		}
		return nil
	}
	if err := runHooks(hooksResume, nil, later, run); err != nil || ran != nil {
		t.Fatal("no folder is fine", err, ran)
	}
	folder := filepath.Join(hooks, hooksResume)
	_ = os.MkdirAll(filepath.Join(folder, "30-folder"), 0o755)
	for name, mode := range map[string]os.FileMode{"20-second": 0o755, "10-first": 0o700, "15-not-executable": 0o644} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := runHooks(hooksResume, []string{"A=1"}, later, run); err != nil || !reflect.DeepEqual(ran, []string{"10-first A=1", "20-second A=1"}) {
		t.Fatal(err, ran)
	}
	for _, name := range []string{"50-bad", "60-after"} {
		_ = os.WriteFile(filepath.Join(folder, name), nil, 0o755)
	}
	ran = nil
	if err := runHooks(hooksResume, nil, later, run); err == nil || len(ran) != 3 {
		t.Fatal(err, ran)
	}
	ran = nil
	if err := runHooks(hooksResume, nil, time.Now(), run); err == nil || !strings.Contains(err.Error(), "no time") || ran != nil {
		t.Fatal(err, ran)
	}
}

func TestTheIDOfACopyReplacesThatOfItsSource(t *testing.T) {
	before := map[string]string{"A": "1", "SANDKEEP_SANDBOX_ID": "sbx_1"}
	after := withID(before, "sbx_2")
	if after["SANDKEEP_SANDBOX_ID"] != "sbx_2" || after["A"] != "1" || before["SANDKEEP_SANDBOX_ID"] != "sbx_1" {
		t.Fatal(before, after)
	}
}
