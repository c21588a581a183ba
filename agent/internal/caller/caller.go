// Package caller finds the user on whose behalf a request acts.
package caller

import (
	"net/http"

	"sandkeep/agent/internal/account"
	"sandkeep/agent/internal/settings"
)

// FromBasic reads the user of an RPC: Basic authorisation with an empty password, as E2B's clients send it.
// It names a user and proves nothing; the access token does that.
func FromBasic(r *http.Request, defaults *settings.Settings) (account.Account, error) {
	name, _, _ := r.BasicAuth()
	return Named(name, defaults)
}

// FromQuery reads the user of a plain HTTP request.
func FromQuery(r *http.Request, defaults *settings.Settings) (account.Account, error) {
	return Named(r.URL.Query().Get("username"), defaults)
}

// Named is the user asked for, who must exist, or the default one, who need not.
func Named(name string, defaults *settings.Settings) (account.Account, error) {
	if name == "" {
		return account.FindOrRoot(defaults.DefaultUser), nil
	}
	return account.Find(name)
}
