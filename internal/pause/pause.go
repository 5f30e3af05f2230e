// Package pause waits as long as a context allows.
package pause

import (
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

// Jitter returns a random time between d/2 and d, so that nodes do not send at the same time.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// Backoff is the pause between polls of an operation of the cloud: 250 ms at first, doubling up to Most, with jitter.
type Backoff struct {
	Most time.Duration
	last time.Duration
}

const least = 250 * time.Millisecond

// Wait waits for the next pause, or returns ctx.Err() as soon as ctx ends.
func (b *Backoff) Wait(ctx context.Context) error {
	b.last = min(max(2*b.last, least), b.Most)
	return For(ctx, Jitter(b.last))
}
