package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"
)

// hooks is a variable for the tests alone.
var hooks = "/etc/sandkeep/hooks"

// Names of the folders in which the sandbox's owner puts programs that are run at these moments.
const (
	hooksQuiesce = "quiesce.d" // before a snapshot of the running sandbox, or its memory's save
	hooksThaw    = "thaw.d"    // after it, where the sandbox runs on
	hooksResume  = "resume.d"  // after a restore of its memory, and in a fork, before any traffic passes
)

// runHooks runs the programs of one folder one after the other, by name. The first that fails ends it; no folder is fine.
func runHooks(folder string, env []string, until time.Time, run func(path string, env []string, patience time.Duration) error) error {
	entries, err := os.ReadDir(filepath.Join(hooks, folder))
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return fmt.Errorf("hooks: %w", err)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	for _, entry := range entries {
		path := filepath.Join(hooks, folder, entry.Name())
		info, err := os.Stat(path) // the sandbox's own links may lead where they like: this runs inside
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			continue
		}
		left := time.Until(until)
		if left <= 0 {
			return fmt.Errorf("%s: no time was left for it", path)
		}
		if err := run(path, env, left); err != nil {
			return err
		}
	}
	return nil
}
