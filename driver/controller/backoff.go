package controller

import (
	"context"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
)

const (
	// patience is how long a wait for another node may last before it counts as one that lasts for hours.
	patience = 2 * time.Minute
	// mostLong bounds the pauses of one, which are a little more than half a minute on average.
	mostLong = 48 * time.Second
	// mostUnderWay bounds the next pause if what is waited for is under way: its end is not to go unnoticed for long.
	mostUnderWay = 800 * time.Millisecond
)

// newBackoff spaces the questions about what the cloud, or another node, has to finish.
func newBackoff() pause.Backoff {
	return pause.Backoff{Least: 500 * time.Millisecond, Most: 5 * time.Second}
}

// waitFor waits for d, or returns the reason why ctx ended.
func waitFor(ctx context.Context, d time.Duration) error {
	if pause.For(ctx, d) != nil {
		return context.Cause(ctx)
	}
	return nil
}
