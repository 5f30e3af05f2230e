// Package rest is the HTTP client for clouds whose API is JSON: it retries, paces and observes the requests that an SDK makes.
//
// A request is retried after a temporary failure, and only if it can be carried out twice without harm or certainly was not carried
// out. Throttling is no failure: one caller at a time waits it out, for as long as its context allows. So configure SDKs not to
// retry. They get the last answer, whatever it is.
//
// Pauses are made in three places: here after a failed attempt of one request; in package pace for all requests while the cloud
// throttles; and with pause.Backoff by whoever polls the cloud or repeats a call that was refused with providers.ErrBusy.
package rest

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
	"github.com/blockvol/blockvol/providers/secret"
)

// Config is a cloud, and how it is reached.
type Config struct {
	Cloud     string             // its name for people
	Endpoint  string             // the setting with the API's URL, for errors that advise to check it; may be empty
	Token     *secret.Secret     // sent as "Authorization: Bearer …"; nil if the SDK authenticates requests
	Secrets   func() []string    // other secrets to remove from errors and logs, such as the SDK's credentials; may be nil
	Transport http.RoundTripper  // sends the requests; nil is a clone of http.DefaultTransport
	Observe   providers.Observer // told of each request; may be nil

	// Repeatable reports whether a POST or PATCH may be carried out twice; nil: none may. It reads the body with GetBody.
	Repeatable func(*http.Request) bool

	// Before is called each time before a request is sent. If it returns an error, the request fails with it, and is not retried if
	// the error is providers.ErrBusy. May be nil.
	Before func(*http.Request) error

	// Refills says that the cloud's limit refills continuously, and RateLimit-Reset is when it is full. Otherwise RateLimit-Reset is
	// when the next request is allowed.
	Refills bool
}

const (
	// attempts is how often a request is sent if there is no answer, or a server error.
	attempts = 3
	// attemptTimeout bounds one request, up to the last byte of its answer. A request that hangs is better sent again.
	attemptTimeout = 20 * time.Second
	// maxAnswer is the largest answer in bytes: more than any page of a list has.
	maxAnswer = 16 << 20
)

// Client sends requests to one account of a cloud. Use one Client for each account, since the rate limit is the account's.
type Client struct {
	// HTTP is for the SDK. It reads answers whole, so that a body can be read again after it was closed, and follows no redirect.
	// Pass its errors to NoAnswer.
	HTTP *http.Client

	cfg   Config
	pace  *pace.Pace
	clock atomic.Pointer[time.Duration] // how far the cloud's clock was ahead in the last answer that showed it
}

// New makes a Client. It makes no request.
func New(cfg Config) *Client {
	if cfg.Transport == nil {
		cfg.Transport = transport()
	}
	c := &Client{cfg: cfg, pace: pace.New()}
	c.HTTP = &http.Client{Transport: repeater{c}, CheckRedirect: asItIs}
	return c
}

// CheckURLs refuses settings, by name, whose values are no URLs of a service. A URL with a password or a query would show it in
// errors and logs.
func CheckURLs(settings map[string]string) error {
	for _, setting := range slices.Sorted(maps.Keys(settings)) {
		u, err := url.Parse(settings[setting])
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return fmt.Errorf("%w: %s must be a URL such as https://host/path", providers.ErrInvalid, setting)
		}
	}
	return nil
}

// Clock returns how far the cloud's clock was ahead of this node's in its last answer, to about a second, or as exactly as the answer
// was quick; false if no answer has shown it.
func (c *Client) Clock() (ahead time.Duration, known bool) {
	last := c.clock.Load()
	if last == nil {
		return 0, false
	}
	return *last, true
}

// Ahead returns how far the clock of who has sent an answer is ahead of this node's, false if the answer does not show it. asked is when
// the request was sent.
func Ahead(header http.Header, asked time.Time) (ahead time.Duration, known bool) {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return 0, false
	}
	const half = time.Second / 2 // Date has whole seconds
	return date.Add(half).Sub(asked.Add(time.Since(asked) / 2)), true
}

// transport is the default transport with pings, which detect that a connection shared by many requests is dead.
func transport() http.RoundTripper {
	t, is := http.DefaultTransport.(*http.Transport)
	if !is {
		return http.DefaultTransport
	}
	t = t.Clone()
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: attemptTimeout / 4, PingTimeout: attemptTimeout / 4}
	return t
}

// asItIs follows no redirect, which could send the token elsewhere.
func asItIs(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Clean makes a text from outside safe for errors and logs: one line of bounded length, without the token and other secrets.
func (c *Client) Clean(text string) string { return sanitize.Clean(text, nil, c.secrets()...) }

func (c *Client) secrets() []string {
	secrets := c.cfg.Token.Values()
	if c.cfg.Secrets != nil {
		secrets = append(secrets, c.cfg.Secrets()...)
	}
	return secrets
}
