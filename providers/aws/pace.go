package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
		if _, gone := p.lookup(ctx, id); errors.Is(gone, providers.ErrNotFound) {
			err = gone
		}
	}
	if errors.Is(err, providers.ErrNotFound) {
		p.memory.lose(id)
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
	pace := p.paces.of(action)
	for failed := 0; ; {
		done, err := pace.wait(ctx)
		if err != nil {
			return answer, fmt.Errorf("%w: EC2 takes no more %s from this account for now (%s), and the call's time is over: %w", providers.ErrBusy, action, cmp.Or(pace.said(), "it throttles"), err)
		}
		err = attempt(ctx, s, func(ctx context.Context) (err error) { answer, err = send(ctx, s.api); return err })
		throttled, after := throttling(err)
		if throttled {
			pace.says(s.clean(ctx, codeOf(err)))
		}
		done(throttled, after)
		switch {
		case err == nil:
			return answer, nil
		case ctx.Err() != nil:
			return answer, fmt.Errorf("EC2 has not answered %s: %w", action, ctx.Err())
		case throttled:
			continue
		}
		failed++
		if failed >= most || !passing(err) {
			return answer, s.explain(ctx, action, err)
		}
		if pause(ctx, jitter(retryAfter<<(failed-1))) != nil {
			return answer, s.explain(ctx, action, err)
		}
	}
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
	byName map[string]*pace
}

func (p *paces) of(action string) *pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byName == nil {
		p.byName = make(map[string]*pace)
	}
	if p.byName[action] == nil {
		p.byName[action] = &pace{turn: make(chan struct{}, 1)}
	}
	return p.byName[action]
}

// pace spaces the requests of this process to one API while EC2 throttles it. Without throttling it is in nobody's way. With
// it, one caller at a time tries, after a pause that doubles with each refusal and halves with each success: so however many
// volumes a node wants, it asks like one, and a fleet of nodes takes all that the bucket gives and little more.
type pace struct {
	turn chan struct{} // held by the caller that tries

	mu      sync.Mutex
	delay   time.Duration // 0: not throttled
	after   time.Duration // what EC2 asked for with its last refusal
	refused int           // how often the delay has grown
	code    string        // of the last refusal
}

const (
	leastDelay = 250 * time.Millisecond
	mostDelay  = 8 * time.Second
)

// wait returns when a request may be sent, and a function to be told of its outcome.
func (p *pace) wait(ctx context.Context) (done func(throttled bool, after time.Duration), err error) {
	delay, _, refused := p.state()
	if delay == 0 {
		return func(throttled bool, after time.Duration) { p.learn(refused, throttled, after) }, ctx.Err()
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	delay, after, refused := p.state()
	if delay == 0 {
		<-p.turn // it is over: nobody waits for another's answer
		return func(throttled bool, after time.Duration) { p.learn(refused, throttled, after) }, ctx.Err()
	}
	if err := pause(ctx, after+jitter(delay)); err != nil {
		<-p.turn
		return nil, err
	}
	return func(throttled bool, after time.Duration) {
		p.learn(refused, throttled, after)
		<-p.turn
	}, nil
}

func (p *pace) state() (delay, after time.Duration, refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay, p.after, p.refused
}

// learn takes an outcome of a request that was sent when there had been so many refusals. Those that were on their way
// together when the bucket ran empty count as one, and the success of one from before says nothing.
func (p *pace) learn(sent int, throttled bool, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case sent != p.refused:
		p.after = max(p.after, after)
	case throttled:
		p.after = after
		p.delay = min(max(2*p.delay, leastDelay), mostDelay)
		p.refused++
	case p.delay > leastDelay:
		p.after = 0
		p.delay /= 2
	default:
		p.after, p.delay = 0, 0
	}
}

func (p *pace) says(code string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.code = code
}

func (p *pace) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code
}

// jitter is between half of d and d, so that nodes do not ask in step.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// pause waits, or returns why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// backoff spaces the questions about something that EC2 has to finish.
type backoff struct{ last, most time.Duration }

func (b *backoff) wait(ctx context.Context) error {
	b.last = min(max(2*b.last, retryAfter), b.most)
	return pause(ctx, jitter(b.last))
}
