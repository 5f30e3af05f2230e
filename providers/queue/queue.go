// Package queue serialises the changes of a node, since clouds refuse a change while another is under way.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/keymutex"
)

// Queue lets callers change a node one after another, first come, first served. Callers for different nodes do not wait for each
// other. The zero Queue is ready to use.
//
// Polling a busy node costs API calls. So the Queue measures how long a change keeps a node busy, and a caller that has waited in
// the queue waits that long before its first call.
type Queue struct {
	turns keymutex.KeyMutex

	mu       sync.Mutex
	begun    map[string]time.Time // by node: when its last change was accepted
	lasts    time.Duration        // estimate of how long a change takes
	measured bool                 // lasts was measured on a busy node
}

const (
	// usualChange is the estimate before the first measurement.
	usualChange = 2 * time.Second
	// mostBusy is the longest pause before a call that returned providers.ErrBusy is repeated.
	mostBusy = 4 * time.Second
	// longestChange is longer than a change of a node takes.
	longestChange = time.Minute
	// longestRest is the longest that a caller waits without calling: a node that was slow once is not always slow.
	longestRest = 8 * time.Second
	// longestDoubt is the most that is added to the last moment at which a node was seen busy: the pauses between two calls grow, so
	// the first success can be much later than the end of the change.
	longestDoubt = 500 * time.Millisecond
)

// Do waits for the caller's turn and then calls call, again while it returns providers.ErrBusy. It returns the last result. If ctx
// ends meanwhile, also before the turn, the error is both ErrBusy and ctx.Err().
func (q *Queue) Do(ctx context.Context, node string, call func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, waited, err := q.turns.Lock(ctx, node)
	if err != nil {
		return tooLate(ctx, node)
	}
	defer unlock()
	if waited && pause.For(ctx, q.rest(node)) != nil {
		return tooLate(ctx, node)
	}
	retry := pause.Backoff{Most: mostBusy}
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
			over = pause.For(ctx, yet)
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

// rest estimates how much longer the node is busy with its last change.
func (q *Queue) rest(node string) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return cmp.Or(q.lasts, usualChange) - time.Since(q.begun[node])
}

// learn notes that the node accepts a change now. The change before it ended between busy, the last time the node was seen busy, and
// now. busy is zero if the node was not busy; rested means that the caller waited for the estimate.
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
