package procfs

import "testing"

func TestKillsAreReadFromBothVersions(t *testing.T) {
	for text, want := range map[string]int64{
		"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 9\n": 2,
		"oom_kill_disable 0\nunder_oom 1\noom_kill 7":                  7,
		"oom_kill_disable 1\n":                                         0, "": 0, "oom_kill x": 0,
	} {
		if got := killsIn([]byte(text)); got != want {
			t.Errorf("%q: %d, not %d", text, got, want)
		}
	}
}
