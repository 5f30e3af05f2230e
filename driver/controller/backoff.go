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
	last  time.Duration
	most  time.Duration // of the next wait; 0: no limit
	begun time.Time     // of a wait that may last for hours: after patience the waits become longer, up to mostLong; zero for another
}

const (
	// patience is how long a wait for another node may last before it counts as one that lasts for hours.
	patience = 2 * time.Minute
	// mostLong bounds the pauses of one, which are half a minute on average.
	mostLong = 45 * time.Second
)

// wait waits once more, or returns the reason why ctx ended.
func (b *backoff) wait(ctx context.Context) error {
	if pause.For(ctx, b.next()) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// next returns how long to wait once more.
func (b *backoff) next() time.Duration {
	limit := 5 * time.Second
	if waited := time.Since(b.begun); !b.begun.IsZero() && waited > patience {
		limit = min(waited/8, mostLong)
	}
	b.last = min(max(2*b.last, 500*time.Millisecond), limit)
	wait := b.last/2 + Jitter(b.last/2)
	if b.most > 0 {
		wait, b.most = min(wait, b.most), 0
	}
	return wait
}

// shorten keeps the next wait under a second: what is waited for is under way, and its end is not to go unnoticed for long.
func (b *backoff) shorten() { b.last = min(b.last, 400*time.Millisecond) }

// Jitter is a random time below the limit. Tests that must be repeatable replace it.
var Jitter = rand.N[time.Duration]
