package controller

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
)

// backoff spaces the questions about something that another party has to finish: from half a second doubling to five,
// with jitter so that nodes do not ask in step.
type backoff struct {
	last time.Duration
	most time.Duration // of the next wait; 0: no limit
}

// wait waits once more, or returns the reason why ctx ended.
func (b *backoff) wait(ctx context.Context) error {
	b.last = min(max(2*b.last, 500*time.Millisecond), 5*time.Second)
	wait := b.last/2 + Jitter(b.last/2)
	if b.most > 0 {
		wait, b.most = min(wait, b.most), 0
	}
	if pause.For(ctx, wait) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// shorten keeps the next wait under a second: what is waited for is under way, and its end is not to go unnoticed for long.
func (b *backoff) shorten() { b.last = min(b.last, 400*time.Millisecond) }

// Jitter is a random time below the limit. Tests that must be repeatable replace it.
var Jitter = rand.N[time.Duration]
