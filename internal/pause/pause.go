// Package pause waits as long as a context allows.
package pause

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"
)

// For waits for d, or returns ctx.Err() as soon as ctx ends.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Random returns a random time below the limit. Tests that must be repeatable replace it.
var Random = rand.N[time.Duration]

// Jitter returns a random time between d/2 and d, so that nodes do not send at the same time.
func Jitter(d time.Duration) time.Duration { return d/2 + Random(max(d/2, 1)) }

// Backoff is the pause between questions about something that another party has to finish: doubling up to Most, with jitter.
type Backoff struct {
	Least time.Duration // the first pause; 0 for 250 ms
	Most  time.Duration
	last  time.Duration
}

const least = 250 * time.Millisecond

// Wait waits for the next pause, or returns ctx.Err() as soon as ctx ends.
func (b *Backoff) Wait(ctx context.Context) error { return For(ctx, b.Next()) }

// Next returns the next pause.
func (b *Backoff) Next() time.Duration {
	b.last = min(max(2*b.last, cmp.Or(b.Least, least)), b.Most)
	return Jitter(b.last)
}

// Shorten makes the next pause no longer than most, if that is not less than Least.
func (b *Backoff) Shorten(most time.Duration) { b.last = min(b.last, most/2) }
