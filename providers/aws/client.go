package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

const (
	// attemptTimeout limits one request. EC2 answers within a second or two.
	attemptTimeout = 20 * time.Second
	// attempts is how often a request is sent if there is no answer, or a server error.
	attempts = 3
	// retryAfter is the pause before the second attempt. It doubles.
	retryAfter = 250 * time.Millisecond
)

// method is a method of the SDK's client, such as (*ec2.Client).AttachVolume.
type method[I, O any] = func(*ec2.Client, context.Context, *I, ...func(*ec2.Options)) (*O, error)

// call sends a request, and repeats it after errors that may be temporary. All requests of this package can be repeated without
// harm, except those of once. While EC2 throttles, call waits until ctx ends.
func call[I, O any](ctx context.Context, p *Provider, send method[I, O], in *I) (*O, error) {
	return try(ctx, p, attempts, send, in)
}

// once is call for a request that must not be carried out twice, or later: CreateSnapshot, StopInstances and StartInstances. It is
// repeated only after answers that say that EC2 has not even looked at it.
func once[I, O any](ctx context.Context, p *Provider, send method[I, O], in *I) (*O, error) {
	return try(ctx, p, 1, send, in)
}

// alter is call for a request that changes a volume. An IAM policy with conditions on tags may deny it because the volume is
// gone, and its tags with it.
func alter[I, O any](ctx context.Context, p *Provider, id string, send method[I, O], in *I) (*O, error) {
	answer, err := call(ctx, p, send, in)
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

// pages is call for a list. Each page is a request with its own time limit: in returns the request, and items the content and the
// next token of its answer. The SDK's paginators cannot be used: they end without an error at a token that repeats.
func pages[I, O, T any](ctx context.Context, p *Provider, send method[I, O], in func(next *string) *I, items func(*O) ([]T, *string)) ([]T, error) {
	var all []T
	for last := (*string)(nil); ; {
		answer, err := call(ctx, p, send, in(last))
		if err != nil {
			return nil, err
		}
		some, next := items(answer)
		all = append(all, some...)
		switch {
		case sdk.ToString(next) == "":
			return all, nil
		case sdk.ToString(next) == sdk.ToString(last):
			return nil, fmt.Errorf("%w: the answers to %s go in a circle: check AWS_ENDPOINT_URL_EC2, and any proxy on the way", providers.ErrUnavailable, actionName[I]())
		}
		last = next
	}
}

// actionName returns EC2's name of a request, such as AttachVolume for AttachVolumeInput.
func actionName[I any]() string { return strings.TrimSuffix(reflect.TypeFor[I]().Name(), "Input") }

func try[I, O any](ctx context.Context, p *Provider, most int, send method[I, O], in *I) (answer *O, err error) {
	s, err := p.session.Get(ctx)
	if err != nil {
		return nil, err
	}
	action := actionName[I]()
	limit := p.paceOf(action)
	observed := providers.Request{Cloud: "EC2", Method: http.MethodPost, Path: action, Retries: -1}
	defer p.observe(&observed, time.Now(), &err)
	for failed, clockCorrected := 0, false; ; {
		done, err := limit.Wait(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: EC2 takes no more %s from this account for now (%s), and the call's time is over: %w", providers.ErrBusy, action, cmp.Or(limit.Why(), "it throttles"), err)
		}
		answer, err := attempt(ctx, s, send, in)
		observed.Retries++
		observed.Status = statusOf(err)
		throttled, after := throttling(err)
		refusal := ""
		if throttled {
			observed.Throttled++
			refusal = cmp.Or(s.clean(ctx, codeOf(err)), "it throttles")
		}
		done(refusal, after)
		switch {
		case err == nil:
			return answer, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("EC2 has not answered %s: %w", action, ctx.Err())
		case throttled && (most > 1 || isThrottleCode(err)):
			continue
		case isExpired(err) && !clockCorrected:
			clockCorrected = true
			if cache, is := s.credentials.(interface{ Invalidate() }); is {
				cache.Invalidate() // this node's clock may still consider them valid
			}
			continue
		}
		failed++
		if failed >= most || !isTemporary(err) || pause.For(ctx, pause.Jitter(retryAfter<<(failed-1))) != nil {
			return nil, s.explain(ctx, action, err)
		}
	}
}

// attempt sends a request once. It retrieves the credentials first, to tell their errors from errors of the request.
func attempt[I, O any](ctx context.Context, s *session, send method[I, O], in *I) (*O, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if _, err := s.credentials.Retrieve(ctx); err != nil {
		return nil, &credentialsError{err}
	}
	return send(s.api, ctx, in)
}

// paceOf returns the Pace of an action: EC2 has a token bucket for each (Amazon EC2 Developer Guide, "Request throttling").
func (p *Provider) paceOf(action string) *pace.Pace {
	known, _ := p.paces.LoadOrStore(action, pace.NewBucket())
	return known.(*pace.Pace) //nolint:forcetypeassert // nothing else is stored
}

// observe reports a request to the Observer when it has ended.
func (p *Provider) observe(r *providers.Request, begin time.Time, err *error) {
	if p.cfg.Observe == nil || r.Retries < 0 {
		return
	}
	r.Took = time.Since(begin)
	if *err != nil && r.Status == 0 {
		r.Problem = (*err).Error() // from explain, so without secrets
	}
	p.cfg.Observe(*r)
}

// statusOf returns the HTTP status of the answer, 0 if there was none.
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

// isTemporary returns true for a server error and for a request without a complete answer.
func isTemporary(err error) bool {
	var none *credentialsError
	if errors.As(err, &none) || errors.Is(err, errTooLong) {
		return false
	}
	status := statusOf(err)
	return status == 0 || status == http.StatusOK || status >= http.StatusInternalServerError
}

// isExpired returns true if EC2 has refused a request, before doing anything, because of its time or the time of the credentials.
// The answer tells the SDK how wrong this node's clock is, and the SDK signs the next request with EC2's time.
func isExpired(err error) bool {
	var retryable interface{ RetryableError() bool } // the SDK's own: these codes have other causes, too
	switch codeOf(err) {
	case "RequestExpired", "ExpiredToken", "ExpiredTokenException":
		return true
	case "AuthFailure", "SignatureDoesNotMatch":
		return errors.As(err, &retryable) && retryable.RetryableError()
	}
	return false
}

// throttling returns whether EC2 has refused a request because there were too many, and for how long it refuses more of them.
func throttling(err error) (throttled bool, after time.Duration) {
	status := statusOf(err)
	throttled = isThrottleCode(err)
	if !throttled && status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests {
		return false, 0
	}
	var answered *awshttp.ResponseError
	if errors.As(err, &answered) && answered.Response != nil {
		if seconds, err := strconv.Atoi(answered.Response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			after = min(time.Duration(seconds)*time.Second, time.Minute)
		}
	}
	return true, after
}

// isThrottleCode returns whether EC2 itself says that it is asked too much. Status 503 alone has other causes, too.
func isThrottleCode(err error) bool {
	_, is := retry.DefaultThrottleErrorCodes[codeOf(err)]
	return is
}

// codeOf returns EC2's error code without the side that is at fault ("Client.RequestLimitExceeded").
func codeOf(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return ""
	}
	return strings.TrimPrefix(strings.TrimPrefix(api.ErrorCode(), "Client."), "Server.")
}
