package rest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
	"github.com/blockvol/blockvol/providers/secret"
	"github.com/hashicorp/go-retryablehttp"
)

var (
	errSlow    = fmt.Errorf("no answer within %s", attemptTimeout)
	errTooLong = errors.New("the answer has no end")
	errForeign = errors.New("it is about something else, or about nothing")
)

// repeater is the transport of Client.HTTP. It retries requests.
type repeater struct{ *Client }

// RoundTrip sends a request, and again as long as that helps and is allowed.
func (c repeater) RoundTrip(r *http.Request) (*http.Response, error) {
	req := &retryablehttp.Request{Request: r.Clone(r.Context())}
	if r.Body != nil && r.Body != http.NoBody {
		body, err := io.ReadAll(r.Body)
		r.Body.Close() //nolint:errcheck // it has been read
		if err != nil {
			return nil, err
		}
		if req.Body = http.NoBody; len(body) > 0 {
			if err := req.SetBody(body); err != nil {
				return nil, err
			}
		}
	}
	repeatable, count := c.repeatable(req.Request), counts{}
	repeating := retryablehttp.Client{
		HTTPClient: &http.Client{Transport: sender{c.Client, &count}, CheckRedirect: asItIs},
		RetryMax:   attempts - 1,
		CheckRetry: func(ctx context.Context, answer *http.Response, err error) (bool, error) {
			return again(ctx, answer, err, repeatable), nil
		},
		Backoff:      backoff,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}
	begin := time.Now()
	answer, err := repeating.Do(req)
	if wrapped, is := err.(*url.Error); is { //nolint:errorlint // the inner client's own, the outer one makes another
		err = wrapped.Err
	}
	if answer != nil {
		answer.Request = r // the caller's own, which has no token
	}
	c.observe(r, answer, err, time.Since(begin), count)
	return answer, err
}

func (c repeater) repeatable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, "":
		return true
	}
	return c.cfg.Repeatable != nil && c.cfg.Repeatable(r)
}

// again reports whether sending a request again may help, and is allowed.
func again(ctx context.Context, answer *http.Response, err error, repeatable bool) bool {
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		var untrusted *tls.CertificateVerificationError
		var token *secret.Error
		if errors.As(err, &untrusted) || errors.As(err, &token) || errors.Is(err, errTooLong) || errors.Is(err, providers.ErrBusy) {
			return false // the next attempt would fail, too
		}
		var way *net.OpError // to the cloud, or to the proxy: the request has not been sent
		return repeatable || errors.As(err, &way) && (way.Op == "dial" || way.Op == "proxyconnect")
	}
	passing := answer.StatusCode == http.StatusRequestTimeout ||
		answer.StatusCode >= http.StatusInternalServerError && answer.StatusCode != http.StatusNotImplemented
	if end, bounded := ctx.Deadline(); bounded && time.Until(end) < retryAfter(answer) {
		return false // this answer is better for the caller than none
	}
	return passing && repeatable
}

// backoff is the pause after a failure: up to 500 ms at first, doubling, added to what the cloud asks for.
func backoff(_, _ time.Duration, failed int, answer *http.Response) time.Duration {
	pause := rand.N(500 * time.Millisecond << failed)
	if answer != nil {
		pause += later(retryAfter(answer))
	}
	return pause
}

// sender sends a request once, and again only while the cloud throttles.
type sender struct {
	*Client
	count *counts
}

// counts are of one request.
type counts struct{ sent, throttled int }

func (c sender) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		done, err := c.pace.Wait(r.Context())
		if err != nil {
			if why := c.pace.Why(); why != "" {
				err = c.throttled(why, err)
			}
			return nil, err
		}
		c.count.sent++
		answer, err := c.send(r)
		if err != nil {
			done("", 0)
			return nil, err
		}
		refused := answer.StatusCode == http.StatusTooManyRequests
		refusal := ""
		if refused {
			refusal = "status 429"
			c.count.throttled++
		}
		done(refusal, c.pauseAfter(answer))
		if !refused {
			return answer, nil
		}
		if r.GetBody != nil {
			r = r.Clone(r.Context())
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// send sends a request once, and reads the whole answer.
func (c sender) send(r *http.Request) (*http.Response, error) {
	if c.cfg.Before != nil {
		if err := c.cfg.Before(r); err != nil {
			return nil, err
		}
	}
	caller := r.Context()
	ctx, cancel := context.WithTimeout(caller, attemptTimeout)
	defer cancel()
	r = r.Clone(ctx)
	if c.cfg.Token != nil {
		token, err := c.cfg.Token.Value()
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	asked := time.Now()
	answer, err := c.cfg.Transport.RoundTrip(r)
	if err == nil {
		if ahead, known := Ahead(answer.Header, asked); known {
			c.clock.Store(&ahead)
		}
		err = readWhole(answer)
	}
	if err != nil && ctx.Err() != nil && caller.Err() == nil {
		err = errSlow
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// readWhole reads the body of an answer into memory, so that one that is cut short fails this attempt.
func readWhole(answer *http.Response) error {
	defer answer.Body.Close() //nolint:errcheck // it has been read
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(body) > maxAnswer {
		return errTooLong
	}
	answer.Body = whole{bytes.NewReader(body)}
	return nil
}

// whole is a body that can be read again after it was closed.
type whole struct{ *bytes.Reader }

func (w whole) Close() error {
	_, err := w.Seek(0, io.SeekStart)
	return err
}

// observe reports a request and its outcome, without query, headers and body.
func (c *Client) observe(r *http.Request, answer *http.Response, err error, took time.Duration, count counts) {
	if c.cfg.Observe == nil {
		return
	}
	secrets := c.secrets()
	for _, name := range []string{"Authorization", "X-Auth-Token", "X-Subject-Token"} {
		secrets = append(secrets, strings.TrimPrefix(r.Header.Get(name), "Bearer "))
		if answer != nil {
			secrets = append(secrets, answer.Header.Get(name))
		}
	}
	ended := providers.Request{
		Cloud: c.cfg.Cloud, Method: r.Method, Path: sanitize.Clean(r.URL.EscapedPath(), nil, secrets...), Took: took,
		Retries: max(0, count.sent-1), Throttled: count.throttled,
	}
	if answer != nil {
		ended.Status = answer.StatusCode
	}
	if err != nil {
		ended.Problem = sanitize.Clean(sanitize.Cause(err), nil, secrets...)
	}
	c.cfg.Observe(ended)
}
