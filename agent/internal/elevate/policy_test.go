package elevate

import "testing"

func TestWhatLetsRunAnything(t *testing.T) {
	for listing, want := range map[string]bool{
		"User user may run the following commands on box:\n    (ALL : ALL) NOPASSWD: ALL\n": true,
		"    (root) NOPASSWD: ALL\n":                     true,
		"    (ALL) NOPASSWD: SETENV: ALL\n":              true,
		"    (ALL : ALL) ALL\n":                          false,
		"    (ALL : ALL) NOPASSWD: /usr/bin/apt-get\n":   false,
		"    (ALL : ALL) NOPASSWD: ALL, !/usr/bin/su\n":  false,
		"    (bob) NOPASSWD: ALL\n":                      false,
		"User user is not allowed to run sudo on box.\n": false,
		"":                              false,
		"    (ALL : ALL) PASSWD: ALL\n": false,
		"    (ALL : ALL) ALL\n    (ALL : ALL) NOPASSWD: ALL\n": true,
	} {
		if got := anything.MatchString(listing); got != want {
			t.Errorf("%q: %v", listing, got)
		}
	}
}
