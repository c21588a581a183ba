package fileapi

import (
	"net/http"
	"strconv"
	"strings"
)

// negotiate picks identity or gzip by RFC 9110, 12.5.3. Ranges and conditions are about the file itself: identity.
func negotiate(header http.Header) (encoding string, ok bool) {
	for _, name := range []string{"Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range"} {
		if header.Get(name) != "" {
			return "identity", true
		}
	}
	accepted := strings.Join(header.Values("Accept-Encoding"), ",")
	if strings.TrimSpace(accepted) == "" {
		return "identity", true
	}
	weights := map[string]float64{}
	for _, part := range strings.Split(accepted, ",") {
		name, parameters, _ := strings.Cut(strings.TrimSpace(part), ";")
		weight := 1.0
		if value, found := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q="); found {
			if parsed, err := strconv.ParseFloat(value, 64); err == nil {
				weight = parsed
			}
		}
		weights[strings.ToLower(strings.TrimSpace(name))] = weight
	}
	weigh := func(name string, otherwise float64) float64 {
		if weight, named := weights[name]; named {
			return weight
		}
		if weight, any := weights["*"]; any {
			return weight
		}
		return otherwise
	}
	gzip, identity := weigh("gzip", 0), weigh("identity", 0.0001)
	switch {
	case gzip > 0 && gzip >= identity:
		return "gzip", true
	case identity > 0:
		return "identity", true
	}
	return "", false
}
