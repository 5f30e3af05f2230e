package providers

import (
	"context"
	"sync"
	"time"
)

// Asked is when a cloud was asked: the time from which an answer's age counts. A request may wait long before it is sent, while
// the cloud is asked too much.
type Asked struct {
	mu sync.Mutex
	at time.Time
}

type askedKey struct{}

// WithAsked returns a context in which it is noted when the first request of a call is sent.
func WithAsked(ctx context.Context) (context.Context, *Asked) {
	a := &Asked{}
	return context.WithValue(ctx, askedKey{}, a), a
}

// At is when the cloud was asked first, zero if nobody has noted it.
func (a *Asked) At() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at
}

// NoteAsked notes that a request is sent at that time. If the cloud refused to hear it, unheard takes that back.
func NoteAsked(ctx context.Context, at time.Time) (unheard func()) {
	a, is := ctx.Value(askedKey{}).(*Asked)
	if !is || at.IsZero() {
		return func() {}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.at.IsZero() {
		return func() {}
	}
	a.at = at
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.at = time.Time{}
	}
}
