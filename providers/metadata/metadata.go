// Package metadata asks a cloud's metadata service which machine this is.
package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Service is the metadata service of a cloud. It answers within milliseconds, or not at all.
type Service struct {
	Cloud   string       // its name for people
	Setting string       // the setting to advise if the service does not answer; may be empty
	Client  *http.Client // nil is a client that uses no proxy
}

const (
	attempts       = 3
	attemptTimeout = 2 * time.Second // of one attempt, its answer included
	maxDocument    = 64 << 10        // bytes
)

var errTooLong = errors.New("the answer is too long")

// noProxy uses no proxy: the service answers about the machine that asks, which would be the proxy.
var noProxy = &http.Client{Transport: func() http.RoundTripper {
	t, is := http.DefaultTransport.(*http.Transport)
	if !is {
		return http.DefaultTransport
	}
	t = t.Clone()
	t.Proxy = nil
	return t
}(), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// Get returns a document of the service, without the white space around it. header may be nil.
// Errors: providers.ErrUnavailable in a sentence for the operator.
func (s Service) Get(ctx context.Context, url string, header http.Header) ([]byte, error) {
	return s.Ask(ctx, http.MethodGet, url, header)
}

// Ask is Get with another method. A request may be sent several times.
func (s Service) Ask(ctx context.Context, method, url string, header http.Header) ([]byte, error) {
	retry := pause.Backoff{Most: time.Second}
	for sent := 1; ; sent++ {
		document, again, err := s.ask(ctx, method, url, header)
		if err == nil {
			return document, nil
		}
		if sent < attempts && again && retry.Wait(ctx) == nil {
			continue
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the metadata service of %s is still waited for: %w", s.Cloud, ctx.Err())
		}
		advice := fmt.Sprintf("blockvol must run on a machine of %s that can reach it", s.Cloud)
		if s.Setting != "" {
			advice += ", or " + s.Setting + " be set"
		}
		return nil, fmt.Errorf("%w: the machine's metadata service at %s does not tell which machine this is (%w): %s",
			providers.ErrUnavailable, url, sanitize.Error(sanitize.Clip(sanitize.Cause(err)), err), advice)
	}
}

func (s Service) ask(ctx context.Context, method, url string, header http.Header) (document []byte, again bool, err error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, false, err
	}
	for name, values := range header {
		r.Header[name] = values
	}
	client := s.Client
	if client == nil {
		client = noProxy
	}
	answer, err := client.Do(r)
	if err == nil {
		defer answer.Body.Close() //nolint:errcheck // it has been read
		document, err = io.ReadAll(io.LimitReader(answer.Body, maxDocument+1))
	}
	switch {
	case err != nil:
		if ctx.Err() != nil && caller.Err() == nil {
			err = fmt.Errorf("no answer within %s", attemptTimeout)
		}
		return nil, true, err
	case answer.StatusCode != http.StatusOK:
		return nil, answer.StatusCode >= http.StatusInternalServerError || answer.StatusCode == http.StatusTooManyRequests, fmt.Errorf("it answers with status %d", answer.StatusCode)
	case len(document) > maxDocument:
		return nil, false, errTooLong
	}
	if document = bytes.TrimSpace(document); len(document) == 0 {
		return nil, true, errors.New("its answer is empty")
	}
	return document, false, nil
}
