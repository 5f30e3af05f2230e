package rest

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestEveryRequestIsObservedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []providers.Request
		observe := func(r providers.Request) { seen = append(seen, r) }
		c, _ := reached(Config{Token: token(t), Observe: observe}, says(500), reset, func(r *http.Request) (*http.Response, error) {
			time.Sleep(2 * time.Second)
			return ok(r)
		})
		_, _, err := ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		require.Len(t, seen, 1)
		assert.Greater(t, seen[0].Took, 2*time.Second)
		seen[0].Took = 0
		assert.Equal(t, providers.Request{Cloud: "Nimbus", Method: "GET", Path: "/v1/volumes", Status: 200, Retries: 2}, seen[0])
	})
}

func TestThrottlesAreObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen providers.Request
		c, _ := reached(Config{Observe: func(r providers.Request) { seen = r }}, says(429), says(500), says(429), ok)
		_, _, err := ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		assert.Equal(t, 2, seen.Throttled)
		assert.Equal(t, 3, seen.Retries)
	})
}

func TestNoSecretIsObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		observe := func(r providers.Request) { assert.NoError(t, json.NewEncoder(&lines).Encode(r)) }
		const password, issued = "pa55word", "gAAAAAB-issued"
		c, _ := reached(Config{Token: token(t), Observe: observe, Secrets: func() []string { return []string{password} }}, func(r *http.Request) (*http.Response, error) {
			return nil, errors.New("malformed answer: " + r.Header.Get("Authorization") + url.QueryEscape(password) + r.Header.Get("X-Auth-Token") + r.Header.Get("X-Subject-Token") + password)
		})
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.nimbus.test/"+url.PathEscape(password)+"/v1?password="+password, strings.NewReader(`{"password":"`+password+`"}`))
		require.NoError(t, err)
		r.Header.Set("X-Auth-Token", "gAAAAAB-auth")
		r.Header.Set("X-Subject-Token", "gAAAAAB-subject")
		_, err = c.HTTP.Do(r)
		require.Error(t, err)
		sentence(t, c.NoAnswer(t.Context(), "the request", err), "malformed")

		// One of the SDK's own, issued in an answer.
		c, _ = reached(Config{Observe: observe}, says(201, "X-Subject-Token", issued))
		r, err = http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.nimbus.test/"+issued, nil)
		require.NoError(t, err)
		_, err = c.HTTP.Do(r)
		require.NoError(t, err)

		assert.Equal(t, 2, strings.Count(lines.String(), "\n"))
		assert.Contains(t, lines.String(), "malformed answer")
		for _, word := range []string{"s3cr3t", password, "gAAAAAB"} {
			assert.NotContains(t, lines.String(), word)
		}
	})
}
