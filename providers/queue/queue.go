// Package queue makes the changes of a machine one after another, since clouds refuse one while another is under way.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/keymutex"
	"github.com/blockvol/blockvol/providers/pace"
)

// Queue lets callers change a node one after another, in the order in which they came. Callers for different nodes do not wait for
// each other. The zero Queue is ready.
//
// To ask a busy node again and again costs calls, and the cloud counts them: so it learns how long a change keeps a node busy,
// and a caller that has queued lets that time pass before it asks.
type Queue struct {
	turns keymutex.KeyMutex

	mu       sync.Mutex
	begun    map[string]time.Time // when the node's last change was accepted, lately
	lasts    time.Duration        // what a change takes, as far as is known
	measured bool                 // by a node that was busy
}

const (
	// usualChange is what a change is taken to last before one was measured.
	usualChange = 2 * time.Second
	// mostBusy is the longest pause before a change that the cloud was too busy for is tried again.
	mostBusy = 4 * time.Second
	// longestChange is more than a change of a node takes.
	longestChange = time.Minute
	// longestRest is how long a caller waits at most without asking: a node that was slow once is not always so.
	longestRest = 8 * time.Second
	// longestDoubt is how much longer than a node was seen to be busy its change is taken to last: pauses between two looks
	// grow, and are no measure of it.
	longestDoubt = 500 * time.Millisecond
)

// Do calls when it is the caller's turn at the node, again as long as it returns providers.ErrBusy, and returns what it
// returned last. If ctx ends meanwhile, the error is that ErrBusy with ctx.Err(); so it is, too, if the turn did not come.
func (q *Queue) Do(ctx context.Context, node string, call func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, waited, err := q.turns.Lock(ctx, node)
	if err != nil {
		return tooLate(ctx, node)
	}
	defer unlock()
	if waited && pace.Pause(ctx, q.rest(node)) != nil {
		return tooLate(ctx, node)
	}
	retry := pace.Backoff{Most: mostBusy}
	for busy := (time.Time{}); ; {
		asked := time.Now()
		err := call(ctx)
		if err == nil {
			q.learn(node, busy, waited)
		}
		if !errors.Is(err, providers.ErrBusy) {
			return err
		}
		busy = asked
		var over error
		if yet := q.rest(node); yet > 0 {
			over = pace.Pause(ctx, yet)
		} else {
			over = retry.Wait(ctx)
		}
		switch {
		case over == nil:
			continue
		case errors.Is(err, over):
			return err
		}
		return fmt.Errorf("%w: %w", err, over)
	}
}

func tooLate(ctx context.Context, node string) error {
	return fmt.Errorf("%w: other changes of node %s are under way, and the call's time is over: %w", providers.ErrBusy, node, ctx.Err())
}

// rest is how long the node will be busy yet with its last change.
func (q *Queue) rest(node string) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return cmp.Or(q.lasts, usualChange) - time.Since(q.begun[node])
}

// learn takes in that the node accepts a change now: the one before took longer than to when it was last busy, if it was, and no
// longer than to this moment.
func (q *Queue) learn(node string, busy time.Time, rested bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(q.begun, func(_ string, begun time.Time) bool { return now.Sub(begun) > longestChange })
	begun, lately := q.begun[node]
	lasts := cmp.Or(q.lasts, usualChange)
	switch {
	case !lately:
	case !busy.IsZero():
		if least := busy.Sub(begun); lasts <= least || !q.measured {
			lasts = least + longestDoubt
		}
		q.lasts, q.measured = min(lasts, now.Sub(begun), longestRest), true
	case rested && q.measured:
		q.lasts -= q.lasts / 128
	case rested:
		q.lasts = lasts - lasts/4
	}
	if q.begun == nil {
		q.begun = make(map[string]time.Time)
	}
	q.begun[node] = now
}
