package lifecycle

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"syscall"
	"time"
)

// tolerated is the skew that is left alone.
const tolerated = 200 * time.Millisecond

// moment is RFC 3339 or unix seconds.
type moment struct{ time.Time }

// UnmarshalJSON implements json.Unmarshaler.
func (m *moment) UnmarshalJSON(raw []byte) error {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw)
	}
	if text == "" || text == "null" {
		return nil
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		whole, part := math.Modf(seconds)
		m.Time = time.Unix(int64(whole), int64(part*1e9))
		return nil
	}
	parsed, err := time.Parse(time.RFC3339Nano, text)
	m.Time = parsed
	return err
}

// adjustClock returns how many seconds the sandbox was behind, having set the clock if that is much and permitted.
// In containers and in gVisor it is not permitted and not needed: their clock is the host's.
func adjustClock(should moment) (float64, error) {
	if should.IsZero() {
		return 0, nil
	}
	skew := time.Until(should.Time)
	seconds := math.Round(skew.Seconds()*1000) / 1000
	if skew.Abs() <= tolerated {
		return seconds, nil
	}
	value := syscall.NsecToTimeval(should.UnixNano())
	err := syscall.Settimeofday(&value)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		return seconds, nil
	}
	return seconds, err
}
