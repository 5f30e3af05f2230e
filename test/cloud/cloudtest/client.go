package cloudtest

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// Client sends requests to the API of a front end.
type Client struct {
	T         *testing.T
	Transport http.RoundTripper
	URL       string
	Token     string
}

// Send sends a request with the client's token.
func (c *Client) Send(method, path, body string) (status int, header http.Header, answer string) {
	c.T.Helper()
	return c.SendAs(c.Token, method, path, body)
}

// SendAs sends a request with a token, or without one.
func (c *Client) SendAs(token, method, path, body string) (status int, header http.Header, answer string) {
	c.T.Helper()
	var headers []string
	if token != "" {
		headers = []string{"Authorization", "Bearer " + token}
	}
	status, header, answer, err := httpsim.Send(c.T.Context(), c.Transport, method, c.URL+path, body, headers...)
	require.NoError(c.T, err)
	return status, header, answer
}

// Must sends a request that must succeed, and returns the value at a path of keys in the answer.
func (c *Client) Must(method, path, body string, keys ...string) any {
	c.T.Helper()
	status, _, answer := c.Send(method, path, body)
	require.Less(c.T, status, 300, answer)
	return JSONField(c.T, answer, keys...)
}

// Refused checks that a request fails with this status and a text in the answer.
func (c *Client) Refused(status int, text, method, path, body string) {
	c.T.Helper()
	got, _, answer := c.Send(method, path, body)
	assert.Equal(c.T, status, got, answer)
	assert.Contains(c.T, answer, text, "%s %s %s", method, path, body)
}

// Unsetenv removes all environment variables with a prefix, such as an SDK's settings, on which tests must not depend.
func Unsetenv(prefix string) {
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(setting, "="); strings.HasPrefix(name, prefix) {
			_ = os.Unsetenv(name)
		}
	}
}
