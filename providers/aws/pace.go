package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

const (
	// attemptTimeout bounds one request. EC2 answers within a second or two; one that hangs is better sent again.
	attemptTimeout = 20 * time.Second
	// attempts is how often a request is sent whose answer did not come or was an error of the server's.
	attempts = 3
	// retryAfter is the pause before the second attempt; it doubles.
	retryAfter = 250 * time.Millisecond
)

// call sends one request, again if it failed by no fault of its own. All that this package sends may be sent twice, but for
// CreateSnapshot, see once. Throttling is no failure: it is waited out as long as ctx lives.
func call[T any](ctx context.Context, p *Provider, action string, send func(context.Context, *ec2.Client) (T, error)) (T, error) {
	return try(ctx, p, action, attempts, send)
}

// once is call for a request that must not be carried out twice.
func once[T any](ctx context.Context, p *Provider, action string, send func(context.Context, *ec2.Client) (T, error)) (T, error) {
	return try(ctx, p, action, 1, send)
}

// alter is call for a request that writes to a volume. A policy whose conditions are on tags may refuse it because the volume
// is gone, and its tags with it.
func alter[T any](ctx context.Context, p *Provider, id, action string, send func(context.Context, *ec2.Client) (T, error)) (T, error) {
	answer, err := call(ctx, p, action, send)
	if errors.Is(err, errDenied) {
		if _, gone := p.Get(ctx, id); errors.Is(gone, providers.ErrNotFound) {
			err = gone
		}
	}
	if errors.Is(err, providers.ErrNotFound) {
		p.Lose(id)
	}
	return answer, err
}

// pages is call for a list, each page of which is a request of its own, with its own time.
func pages[T any](ctx context.Context, p *Provider, action string, send func(ctx context.Context, api *ec2.Client, next *string) ([]T, *string, error)) ([]T, error) {
	type page struct {
		items []T
		next  *string
	}
	var all []T
	for last := (*string)(nil); ; {
		got, err := call(ctx, p, action, func(ctx context.Context, api *ec2.Client) (got page, err error) {
			got.items, got.next, err = send(ctx, api, last)
			return got, err
		})
		if err != nil {
			return nil, err
		}
		all = append(all, got.items...)
		switch {
		case sdk.ToString(got.next) == "":
			return all, nil
		case sdk.ToString(got.next) == sdk.ToString(last):
			return nil, fmt.Errorf("%w: the answers to %s go in a circle: check AWS_ENDPOINT_URL_EC2, and any proxy on the way", providers.ErrUnavailable, action)
		}
		last = got.next
	}
}

func try[T any](ctx context.Context, p *Provider, action string, most int, send func(context.Context, *ec2.Client) (T, error)) (answer T, err error) {
	s, err := p.session(ctx)
	if err != nil {
		return answer, err
	}
	way := p.paces.of(action)
	seen := providers.Request{Cloud: "EC2", Method: http.MethodPost, Path: action, Retries: -1}
	defer p.observe(&seen, time.Now(), &err)
	for failed, corrected := 0, false; ; {
		done, err := way.Wait(ctx)
		if err != nil {
			return answer, fmt.Errorf("%w: EC2 takes no more %s from this account for now (%s), and the call's time is over: %w", providers.ErrBusy, action, cmp.Or(way.Why(), "it throttles"), err)
		}
		err = attempt(ctx, s, func(ctx context.Context) (err error) { answer, err = send(ctx, s.api); return err })
		seen.Retries++
		seen.Status = statusOf(err)
		throttled, after := throttling(err)
		refusal := ""
		if throttled {
			refusal = cmp.Or(s.clean(ctx, codeOf(err)), "it throttles")
		}
		done(refusal, after)
		switch {
		case err == nil:
			return answer, nil
		case ctx.Err() != nil:
			return answer, fmt.Errorf("EC2 has not answered %s: %w", action, ctx.Err())
		case throttled:
			continue
		case stale(err) && !corrected:
			corrected = true
			if cache, is := s.credentials.(interface{ Invalidate() }); is {
				cache.Invalidate() // by this node's clock they may be good
			}
			continue
		}
		failed++
		if failed >= most || !passing(err) {
			return answer, s.explain(ctx, action, err)
		}
		if pace.Pause(ctx, pace.Jitter(retryAfter<<(failed-1))) != nil {
			return answer, s.explain(ctx, action, err)
		}
	}
}

// observe tells what became of a request that began at that time.
func (p *Provider) observe(r *providers.Request, begun time.Time, err *error) {
	if p.cfg.Observe == nil || r.Retries < 0 {
		return
	}
	r.Took = time.Since(begun)
	if *err != nil && r.Status == 0 {
		r.Problem = (*err).Error() // which explain has made
	}
	p.cfg.Observe(*r)
}

// statusOf returns the status of the answer, 0 if there was none.
func statusOf(err error) int {
	var answered *awshttp.ResponseError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &answered):
		return answered.HTTPStatusCode()
	}
	return 0
}

func attempt(ctx context.Context, s *session, send func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	// Asked for here, so that what is wrong with them can be told from what is wrong with the request.
	if _, err := s.credentials.Retrieve(ctx); err != nil {
		return &credentialsError{err}
	}
	return send(ctx)
}

// passing tells whether an error may be gone at the next attempt: the server's own, or no answer at all.
func passing(err error) bool {
	var none *credentialsError
	if errors.As(err, &none) || errors.Is(err, errTooLong) {
		return false
	}
	var answered *awshttp.ResponseError
	if errors.As(err, &answered) && answered.HTTPStatusCode() != http.StatusOK {
		return answered.HTTPStatusCode() >= http.StatusInternalServerError
	}
	return true // the connection failed, or the answer came damaged
}

// stale tells whether EC2 has refused a request for its time: that in the signature, or the end of the credentials' life. From
// the answer the SDK knows how far this node's clock is off, and signs the next request by EC2's. Nothing has been carried out.
func stale(err error) bool {
	var probably interface{ RetryableError() bool } // the SDK's, of codes that may mean something else
	switch codeOf(err) {
	case "RequestExpired", "ExpiredToken", "ExpiredTokenException":
		return true
	case "AuthFailure", "SignatureDoesNotMatch":
		return errors.As(err, &probably) && probably.RetryableError()
	}
	return false
}

// throttling tells whether EC2 has refused because it was asked too much, and how long it wants to be left alone.
func throttling(err error) (throttled bool, after time.Duration) {
	if err == nil {
		return false, 0
	}
	var answered *awshttp.ResponseError
	if errors.As(err, &answered) && answered.Response != nil {
		if seconds, err := strconv.Atoi(answered.Response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			after = min(time.Duration(seconds)*time.Second, time.Minute)
		}
		throttled = answered.HTTPStatusCode() == http.StatusServiceUnavailable || answered.HTTPStatusCode() == http.StatusTooManyRequests
	}
	switch codeOf(err) {
	case "RequestLimitExceeded", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
		"RequestThrottledException", "TooManyRequestsException", "EC2ThrottledException", "SlowDown":
		throttled = true
	}
	if !throttled {
		after = 0
	}
	return throttled, after
}

// codeOf returns EC2's code of an error, without the side that it blames ("Client.RequestLimitExceeded").
func codeOf(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return ""
	}
	return strings.TrimPrefix(strings.TrimPrefix(api.ErrorCode(), "Client."), "Server.")
}

// paces are the paces of all APIs: EC2 has a token bucket for each (Amazon EC2 Developer Guide, "Request throttling").
type paces struct {
	mu     sync.Mutex
	byName map[string]*pace.Pace
}

func (p *paces) of(action string) *pace.Pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byName == nil {
		p.byName = make(map[string]*pace.Pace)
	}
	if p.byName[action] == nil {
		p.byName[action] = pace.New()
	}
	return p.byName[action]
}
