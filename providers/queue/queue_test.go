package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

var errDown = errors.New("down")

func TestCallersForOneNodeAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Queue
		var order []int
		var all sync.WaitGroup
		begin := time.Now()
		for i := range 20 {
			all.Go(func() {
				assert.NoError(t, l.Do(t.Context(), "a", func(context.Context) error {
					order = append(order, i) // the race detector sees two at once
					time.Sleep(time.Second)
					return nil
				}))
			})
			synctest.Wait()
		}
		all.Go(func() {
			if assert.NoError(t, l.Do(t.Context(), "b", func(context.Context) error { return nil })) {
				assert.Zero(t, time.Since(begin), "another node waits for nobody")
			}
		})
		all.Wait()
		assert.IsIncreasing(t, order)
		assert.Less(t, time.Since(begin), 30*time.Second, "before it is known how long a change lasts, soon")
		assert.True(t, l.turns.Idle())
	})
}

func TestABusyNodeIsRetriedUntilItIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Queue
		var at []time.Time
		busyUntil := time.Now().Add(20 * time.Second)
		require.NoError(t, l.Do(t.Context(), "a", func(context.Context) error {
			at = append(at, time.Now())
			if time.Now().Before(busyUntil) {
				return fmt.Errorf("%w: locked", providers.ErrBusy)
			}
			return nil
		}))
		assert.LessOrEqual(t, at[1].Sub(at[0]), 250*time.Millisecond)
		assert.Less(t, len(at), 18)
		assert.Less(t, at[len(at)-1].Sub(busyUntil), 4*time.Second)

		// Any other error is the caller's, at once, and the next one's turn.
		err := l.Do(t.Context(), "a", func(context.Context) error { return errDown })
		require.ErrorIs(t, err, errDown)
		require.NoError(t, l.Do(t.Context(), "a", func(context.Context) error { return nil }))
	})
}

func TestAQueuedCallerDoesNotPollABusyNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Queue
		took := 3 * time.Second
		var free time.Time
		tries := 0
		change := func(context.Context) error {
			tries++
			if time.Now().Before(free) {
				return providers.ErrBusy
			}
			free = time.Now().Add(took)
			return nil
		}
		many := func(n int) {
			var all sync.WaitGroup
			for range n {
				all.Go(func() { assert.NoError(t, l.Do(t.Context(), "a", change)) })
			}
			all.Wait()
		}
		many(20) // by which it learns
		assert.Less(t, tries, 20+10)
		time.Sleep(time.Minute)
		begin := time.Now()
		tries = 0
		many(30)
		assert.Less(t, tries, 30+10)
		assert.Less(t, time.Since(begin), 29*took+29*took/8, "and loses little time")

		time.Sleep(time.Second) // two seconds before the last is done
		begin, tries = time.Now(), 0
		require.NoError(t, l.Do(t.Context(), "a", change))
		assert.Less(t, time.Since(begin), took, "who comes alone asks at once, and when it should be over")
		assert.LessOrEqual(t, tries, 3)

		took = 50 * time.Second
		many(2)
		took = 3 * time.Second
		time.Sleep(time.Minute)
		begin = time.Now()
		many(10)
		assert.Less(t, time.Since(begin), 9*longestRest+time.Second, "once slow is not always slow")
		time.Sleep(time.Hour)
		begin = time.Now()
		many(1)
		assert.Zero(t, time.Since(begin))
		assert.Len(t, l.begun, 1)
	})
}

func TestTheContextEndsTheRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Queue
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begin := time.Now()
		err := l.Do(ctx, "a", func(context.Context) error { return fmt.Errorf("%w: pending event", providers.ErrBusy) })
		require.ErrorIs(t, err, providers.ErrBusy)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "pending event")
		assert.Equal(t, 10*time.Second, time.Since(begin))
		require.ErrorIs(t, l.Do(ctx, "a", func(context.Context) error { t.Error("called"); return nil }), context.DeadlineExceeded)
		assert.True(t, l.turns.Idle())
	})
}

func TestACancelledCallerLeavesNothingInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Queue
		var all sync.WaitGroup
		second := func(context.Context) error { time.Sleep(time.Second); return nil }
		all.Go(func() { assert.NoError(t, l.Do(t.Context(), "a", second)) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		for range 5 {
			all.Go(func() {
				err := l.Do(ctx, "a", func(context.Context) error { t.Error("called"); return nil })
				if assert.ErrorIs(t, err, providers.ErrBusy) {
					assert.ErrorIs(t, err, context.DeadlineExceeded)
				}
			})
		}
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, l.Do(t.Context(), "a", second))
		assert.Equal(t, 2*time.Second+usualChange, time.Since(begin))
		all.Wait()
		assert.True(t, l.turns.Idle())
	})
}

// Callers that leave at any moment, also in the one in which their turn comes, strand nobody.
func TestTheQueueMovesOnWhoeverLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Queue
		var all sync.WaitGroup
		inside := 0
		for i := range 500 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond*10+time.Millisecond)
				defer cancel()
				_ = l.Do(ctx, strconv.Itoa(i%3), func(context.Context) error {
					if i%3 == 0 {
						inside++
						assert.Equal(t, 1, inside)
						defer func() { inside-- }()
					}
					time.Sleep(time.Millisecond)
					return nil
				})
			})
		}
		all.Wait()
		assert.True(t, l.turns.Idle())
	})
}
