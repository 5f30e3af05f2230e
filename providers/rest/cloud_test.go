package rest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/providers/secret"
)

const password = `dop_v1_s3cr3t/+"&<x>`

// answer is how a cloud answers a request.
type answer func(r *http.Request) (*http.Response, error)

// cloud answers as it is told to, the last way for ever, and notes what it was asked.
type cloud struct {
	mu      sync.Mutex
	answers []answer
	asked   []asked
}

type asked struct {
	at            time.Time
	authorization string
	body          string
}

func (c *cloud) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		all, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil {
			return nil, err
		}
		body = string(all)
	}
	c.mu.Lock()
	c.asked = append(c.asked, asked{time.Now(), r.Header.Get("Authorization"), body})
	next := c.answers[0]
	if len(c.answers) > 1 {
		c.answers = c.answers[1:]
	}
	c.mu.Unlock()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return next(r)
}

func (c *cloud) times() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked)
}

// says answers with a status and headers, given as names and values.
func says(status int, headers ...string) answer {
	return func(r *http.Request) (*http.Response, error) {
		h := http.Header{}
		for pair := range slices.Chunk(headers, 2) {
			h.Set(pair[0], pair[1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(`{"id":1}`)), Request: r}, nil
	}
}

func fails(err error) answer { return func(*http.Request) (*http.Response, error) { return nil, err } }

// breaks answers half.
func breaks(r *http.Request) (*http.Response, error) {
	half := io.MultiReader(strings.NewReader(`{"i`), reader(func([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }))
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(half), Request: r}, nil
}

// hangs does not answer, and hangsLater not to the end.
func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func hangsLater(r *http.Request) (*http.Response, error) {
	half := io.MultiReader(strings.NewReader(`{"i`), reader(func([]byte) (int, error) {
		<-r.Context().Done()
		return 0, r.Context().Err()
	}))
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(half), Request: r}, nil
}

type reader func([]byte) (int, error)

func (r reader) Read(b []byte) (int, error) { return r(b) }

var (
	ok    = says(http.StatusOK)
	reset = fails(&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET})
	dial  = fails(&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED})
)

// reached makes a Client for a cloud that answers so.
func reached(cfg Config, answers ...answer) (*Client, *cloud) {
	c := &cloud{answers: answers}
	cfg.Cloud, cfg.Endpoint, cfg.Transport = "Nimbus", "NIMBUS_URL", c
	return New(cfg), c
}

// ask sends a request and reads its answer to the end.
func ask(ctx context.Context, c *Client, method, body string) (status int, text string, err error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://api.nimbus.test/v1/volumes?token=in+the+query", io.NopCloser(strings.NewReader(body)))
	if err != nil {
		return 0, "", err
	}
	got, err := c.HTTP.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = got.Body.Close() }()
	all, err := io.ReadAll(got.Body)
	return got.StatusCode, string(all), err
}

// sentence asserts that an error is fit for an operator, and says all that.
func sentence(t *testing.T, err error, words ...string) {
	t.Helper()
	providertest.Sentence(t, err, words...)
	for _, shape := range []string{password, url.QueryEscape(password), `\u003cx\u003e`} {
		assert.NotContains(t, err.Error(), shape)
	}
}

func token(t *testing.T) *secret.Secret {
	t.Helper()
	token, err := secret.From(env("NIMBUS_TOKEN", password), "NIMBUS_TOKEN")
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for pair := range slices.Chunk(pairs, 2) {
			if pair[0] == name {
				return pair[1]
			}
		}
		return ""
	}
}

var errDown = errors.New("down")
