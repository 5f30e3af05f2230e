package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func logger(level logrus.Level) (*logrus.Logger, *bytes.Buffer) {
	var lines bytes.Buffer
	log := logrus.New()
	log.SetOutput(&lines)
	log.SetLevel(level)
	log.SetFormatter(&logrus.JSONFormatter{})
	return log, &lines
}

func TestEveryRequestIsOneLineOfTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := logger(logrus.DebugLevel)
		c, _ := reached(Config{Token: token(t), Log: log}, says(500), reset, func(r *http.Request) (*http.Response, error) {
			time.Sleep(2 * time.Second)
			return ok(r)
		})
		_, _, err := ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		assert.Equal(t, 1, strings.Count(lines.String(), "\n"))
		var line map[string]any
		require.NoError(t, json.Unmarshal(lines.Bytes(), &line))
		assert.Equal(t, "debug", line["level"])
		assert.Equal(t, "Asked Nimbus", line["msg"])
		assert.Equal(t, "GET", line["method"])
		assert.Equal(t, "/v1/volumes", line["path"])
		assert.InDelta(t, 200, line["status"], 0)
		assert.InDelta(t, 2, line["retries"], 0)
		assert.Greater(t, line["took"], 2e9)

		quiet, nothing := logger(logrus.InfoLevel)
		c, _ = reached(Config{Token: token(t), Log: quiet}, ok)
		_, _, err = ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		assert.Empty(t, nothing.String())
	})
}

func TestNoSecretIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := logger(logrus.DebugLevel)
		const password, issued = "pa55word", "gAAAAAB-issued"
		c, _ := reached(Config{Token: token(t), Log: log, Secrets: func() []string { return []string{password} }}, func(r *http.Request) (*http.Response, error) {
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
		c, _ = reached(Config{Log: log}, says(201, "X-Subject-Token", issued))
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
