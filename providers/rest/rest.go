// Package rest is how blockvol talks to clouds whose API is JSON over HTTP: one policy of repeating, pacing and observing,
// below whatever SDK makes the requests.
//
// A request is repeated after a failure that may be gone the next time, and only if it does no harm twice or certainly had no
// effect. Being asked to slow down is no failure: it is waited out as long as the caller waits, by one caller at a time. So
// SDKs are to be told not to repeat anything themselves. The last answer is theirs to read, whatever it is.
package rest

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
	"github.com/blockvol/blockvol/providers/secret"
)

// Config is a cloud, and how it is reached.
type Config struct {
	Cloud     string             // its name for people
	Endpoint  string             // the setting that names the API's URL, to be checked when there is no answer; may be empty
	Token     *secret.Secret     // sent as "Authorization: Bearer …"; nil if the SDK signs by itself
	Secrets   func() []string    // what else no text may show, such as what the SDK signs with; may be nil
	Transport http.RoundTripper  // below it all; nil is a clone of http.DefaultTransport
	Observe   providers.Observer // told of each request; may be nil

	// Repeatable tells of a request that may be carried out twice although its method does not say so; nil for none. What it
	// wants to know of the body it gets by GetBody.
	Repeatable func(*http.Request) bool

	// Before is asked each time a request is about to be sent; its error is the request's, which is not repeated if that is
	// providers.ErrBusy. May be nil.
	Before func(*http.Request) error

	// Refills is a cloud whose limit grows again bit by bit, and whose RateLimit-Reset is when it is whole.
	// Otherwise it is when there will be a next request.
	Refills bool
}

const (
	// attempts is how often a request is sent whose answer did not come or was an error of the server's.
	attempts = 3
	// attemptTimeout bounds one request, its answer's last byte included. One that hangs is better sent again.
	attemptTimeout = 20 * time.Second
	// maxAnswer is how much of an answer is read, in bytes: more than any page of a list has.
	maxAnswer = 16 << 20
)

// Client is a cloud as this process reaches it. All that one account is asked belongs through one Client, since its limit is
// one.
type Client struct {
	// HTTP is for the SDK. What it returns has been read whole, so that its body can be read again after it was closed, and it
	// follows no redirect. An error of its is for
	// NoAnswer to explain.
	HTTP *http.Client

	cfg  Config
	pace *pace.Pace
}

// New makes a Client. It calls nobody.
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

// transport is the default one, which notices that a connection shared by many requests is dead.
func transport() http.RoundTripper {
	t, is := http.DefaultTransport.(*http.Transport)
	if !is {
		return http.DefaultTransport
	}
	t = t.Clone()
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: attemptTimeout / 4, PingTimeout: attemptTimeout / 4}
	return t
}

// asItIs follows no redirect: it could lead a token elsewhere.
func asItIs(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Clean makes a text from outside fit for errors and logs: one line of bounded length without the token and the other secrets.
func (c *Client) Clean(text string) string { return sanitize.Clean(text, nil, c.secrets()...) }

func (c *Client) secrets() []string {
	secrets := c.cfg.Token.Values()
	if c.cfg.Secrets != nil {
		secrets = append(secrets, c.cfg.Secrets()...)
	}
	return secrets
}
