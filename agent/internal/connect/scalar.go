package connect

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// Bytes is protobuf's `bytes` in JSON: either base64 alphabet, padding optional.
type Bytes []byte

var toStandard = strings.NewReplacer("-", "+", "_", "/")

// UnmarshalJSON implements json.Unmarshaler.
func (b *Bytes) UnmarshalJSON(raw []byte) error {
	if bytes.Equal(raw, []byte("null")) {
		return nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return err
	}
	text = strings.TrimRight(text, "=")
	if strings.ContainsAny(text, "-_") {
		text = toStandard.Replace(text)
	}
	decoded, err := base64.RawStdEncoding.DecodeString(text)
	*b = decoded
	return err
}

// Integer is a number that protobuf's JSON may also write as a string.
type Integer int64

// UnmarshalJSON implements json.Unmarshaler.
func (i *Integer) UnmarshalJSON(raw []byte) error {
	if bytes.Equal(raw, []byte("null")) {
		return nil
	}
	text := strings.Trim(string(raw), `"`)
	if value, err := strconv.ParseInt(text, 10, 64); err == nil {
		*i = Integer(value)
		return nil
	}
	// 1e3 and 5.0 are legal spellings of integers in protobuf's JSON.
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || value != float64(int64(value)) {
		return errors.New("not an integer: " + text)
	}
	*i = Integer(value)
	return nil
}
