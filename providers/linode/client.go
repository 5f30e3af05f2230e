package linode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync/atomic"
)

// errNotLinodes is for an answer that is another service's, or a page.
var errNotLinodes = errors.New("it is not of Linode's form")

// repeatable reports whether a POST can be carried out twice without harm. A second one is refused, since the label is taken, the
// volume attached, or its size reached. But a late detach could take the volume from its next holder, and a late change of power hit a
// Linode that has been started, or shut down, since.
func repeatable(r *http.Request) bool {
	return !strings.HasSuffix(r.URL.Path, "/detach") && !strings.Contains(r.URL.Path, "/linode/instances/")
}

// outcome is the result of a request. It exists because the SDK keeps only the text of an error, and takes an error of unknown form
// for a success.
type outcome struct {
	status  int
	reasons []reason // why it was refused
	err     error    // why there is no answer of Linode's
}

type reason struct {
	Reason string `json:"reason"`
	Field  string `json:"field"`
}

type outcomeKey struct{}

// witness is a transport that stores the outcome of a request in its context, and turns an answer that is not Linode's into an error.
type witness struct {
	*http.Client
	scopes *atomic.Pointer[string] // of the token, as the last answer has told them
}

// RoundTrip implements http.RoundTripper.
func (w witness) RoundTrip(r *http.Request) (*http.Response, error) {
	o, is := r.Context().Value(outcomeKey{}).(*outcome)
	if !is {
		o = new(outcome)
	}
	*o = outcome{}
	answer, err := w.Transport.RoundTrip(r)
	if err == nil {
		o.status = answer.StatusCode
		if scopes := answer.Header.Get("X-Oauth-Scopes"); scopes != "" {
			w.scopes.Store(&scopes)
		}
		if err = o.read(answer); err != nil {
			answer.Body.Close() //nolint:errcheck // it is in memory
		}
	}
	o.err = err
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// read checks that the answer has Linode's form. The body can be read again.
func (o *outcome) read(answer *http.Response) error {
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	if o.status == http.StatusNoContent {
		return nil
	}
	kind, _, err := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return fmt.Errorf("status %d: %w", o.status, errNotLinodes)
	}
	answer.Header.Set("Content-Type", kind) // as the SDK wants it, to the letter
	var said struct {
		Errors []reason `json:"errors"`
	}
	if err := json.Unmarshal(body, &said); err != nil {
		return err
	}
	o.reasons = said.Errors
	accepted, refused := o.status/100 == 2, o.status >= http.StatusBadRequest
	if accepted != (len(said.Errors) == 0) || !accepted && !refused {
		return fmt.Errorf("status %d: %w", o.status, errNotLinodes)
	}
	return nil
}

// call makes one request. action is what is sent, as a noun: "the request to attach volume 12". An answer that is not what was asked
// for, as is tells, counts as none.
func call[T any](ctx context.Context, p *Provider, action string, ask func(context.Context) (T, error), is func(T) bool) (T, error) {
	var o outcome
	answer, err := ask(context.WithValue(ctx, outcomeKey{}, &o))
	switch {
	case err == nil && is(answer):
		return answer, nil
	case err == nil:
		err = errNotLinodes
	}
	var none T
	switch {
	case errors.Is(o.err, errLookAgain):
		return none, errLookAgain
	case o.err != nil:
		return none, p.rest.NoAnswer(ctx, action, o.err)
	case o.status < http.StatusBadRequest:
		return none, p.rest.NoAnswer(ctx, action, err)
	}
	return none, p.translate(action, o)
}

// do is call for answers without content.
func (p *Provider) do(ctx context.Context, action string, ask func(context.Context) error) error {
	_, err := call(ctx, p, action, func(ctx context.Context) (struct{}, error) { return struct{}{}, ask(ctx) }, func(struct{}) bool { return true })
	return err
}
