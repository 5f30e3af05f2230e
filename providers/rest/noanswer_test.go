package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/metadata"
)

func TestNoAnswerIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var into struct{ ID string }
		for name, kind := range map[string]struct {
			answer answer
			words  []string
		}{
			"no connection": {dial, []string{"does not answer", "connection refused"}},
			"hanging":       {hangs, []string{"does not answer", "no answer within 20s"}},
			"hostile":       {fails(errors.New("malformed HTTP response \"" + password + "\x00\n\"")), []string{"does not answer", "malformed"}},
		} {
			c, _ := reached(Config{Token: token(t)}, kind.answer)
			_, _, err := ask(t.Context(), c, "GET", "")
			err = c.NoAnswer(t.Context(), "the request to attach volume 12", err)
			require.ErrorIs(t, err, providers.ErrUnavailable, name)
			sentence(t, err, append(kind.words, "Nimbus", "the request to attach volume 12", "NIMBUS_URL", "proxy")...)
		}

		// What SDKs make of an answer that they cannot read, or of an error.
		c, _ := reached(Config{Token: token(t)}, ok)
		for word, err := range map[string]error{
			"cut short":    json.Unmarshal([]byte(`{"id"`), &into),
			"not its own":  fmt.Errorf("decoding: %w", json.Unmarshal([]byte(`<html>`), &into)),
			"is not its":   json.Unmarshal([]byte(`{"id":1}`), &into),
			"can be used":  errors.New(`[002] Get "https://api.nimbus.test": ` + password),
			"that can be ": errDown,
		} {
			explained := c.NoAnswer(t.Context(), "ListVolumes", err)
			require.ErrorIs(t, explained, providers.ErrUnavailable)
			require.ErrorIs(t, explained, err)
			sentence(t, explained, "Nimbus", "ListVolumes", word, "NIMBUS_URL")
		}
		c = New(Config{Cloud: "Nimbus", Transport: http.DefaultTransport})
		sentence(t, c.NoAnswer(t.Context(), "ListVolumes", errDown), "check the network and any proxy")
	})
}

func TestTheEndOfTheCallersTimeIsNotTheCloudsFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, lossy := range []bool{false, true} { // an SDK that keeps an error's text only
			c, _ := reached(Config{Token: token(t)}, hangs)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, _, err := ask(ctx, c, "GET", "")
			if lossy {
				err = errors.New(err.Error())
			}
			err = c.NoAnswer(ctx, "ListVolumes", err)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, providers.ErrUnavailable)
			sentence(t, err, "Nimbus", "ListVolumes")

			c, _ = reached(Config{Token: token(t)}, says(429))
			ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, _, err = ask(ctx, c, "GET", "")
			if lossy {
				err = errors.New(err.Error())
			}
			err = c.NoAnswer(ctx, "ListVolumes", err)
			require.ErrorIs(t, err, providers.ErrBusy)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			sentence(t, err, "Nimbus", "takes no more requests", "429")
		}
	})
}

func TestMetadataIsAskedAFewTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, kind := range map[string]struct {
			answers []answer
			times   int
			word    string // of the error; none if it is found
		}{
			"there":        {[]answer{ok}, 1, ""},
			"there late":   {[]answer{dial, says(503), ok}, 3, ""},
			"not there":    {[]answer{dial}, 3, "refused"},
			"hanging":      {[]answer{hangs}, 3, "no answer within 2s"},
			"breaking":     {[]answer{breaks}, 3, "EOF"},
			"another's":    {[]answer{says(404)}, 1, "404"},
			"elsewhere":    {[]answer{says(302, "Location", "https://elsewhere.test")}, 1, "302"},
			"disconnected": {[]answer{says(500)}, 3, "500"},
		} {
			_, service := reached(Config{}, kind.answers...)
			m := metadata.Service{Cloud: "Nimbus", Setting: "NIMBUS_ID", Client: &http.Client{Transport: service, CheckRedirect: asItIs}}
			begin := time.Now()
			document, err := m.Get(t.Context(), "http://169.254.169.254/id", http.Header{"Metadata-Token": {"x"}})
			assert.Len(t, service.asked, kind.times, name)
			assert.Less(t, time.Since(begin), 8*time.Second)
			if kind.word == "" {
				require.NoError(t, err, name)
				assert.JSONEq(t, `{"id":1}`, string(document))
				continue
			}
			require.ErrorIs(t, err, providers.ErrUnavailable, name)
			sentence(t, err, "169.254.169.254", "Nimbus", "NIMBUS_ID", kind.word)
		}

		_, service := reached(Config{}, hangs)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := metadata.Service{Cloud: "Nimbus", Client: &http.Client{Transport: service}}.Get(ctx, "http://169.254.169.254/id", nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, providers.ErrUnavailable)
	})
}
