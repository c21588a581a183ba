package procfs

import "testing"

func TestMemory(t *testing.T) {
	text := "MemTotal:       24684084 kB\nMemFree:        100 kB\nMemAvailable:   200 kB\nBuffers: 1 kB\nSwapCached: 7 kB\nCached:        300 kB\n"
	if got := parseMemory([]byte(text)); got != (Memory{24684084 << 10, 200 << 10, 100 << 10, 300 << 10}) {
		t.Fatal(got)
	}
	if got := parseMemory(nil); got != (Memory{}) {
		t.Fatal(got)
	}
	reader, err := NewMemoryReader()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := reader.Read(); err != nil || got.Total == 0 || got.Available == 0 {
		t.Fatal(got, err)
	}
}
