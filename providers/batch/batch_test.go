package batch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// answers is a cloud that takes a second to answer and notes what it was asked.
type answers struct {
	mu    sync.Mutex
	asked [][]string
	err   error
}

func (a *answers) ask(ctx context.Context, keys []string) (map[string]string, error) {
	a.mu.Lock()
	a.asked = append(a.asked, keys)
	a.mu.Unlock()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	found := make(map[string]string)
	for _, key := range keys {
		if key != "nobody" {
			found[key] = "the " + key
		}
	}
	return found, a.err
}

func TestAQuestionThatComesAloneWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := &answers{}
		a := New(cloud.ask, 10)
		begin := time.Now()
		value, found, err := a.Get(t.Context(), "one")
		require.NoError(t, err)
		assert.True(t, found)
		assert.Equal(t, "the one", value)
		assert.Equal(t, time.Second, time.Since(begin), "the cloud's own time")
		_, found, err = a.Get(t.Context(), "nobody")
		require.NoError(t, err)
		assert.False(t, found)
	})
}

func TestQuestionsThatComeTogetherShareACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := &answers{}
		a := New(cloud.ask, 40)
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = a.Get(t.Context(), "first") })
		synctest.Wait()
		for i := range 100 {
			all.Go(func() {
				key := fmt.Sprint("key ", i)
				value, found, err := a.Get(t.Context(), key)
				if assert.NoError(t, err) {
					assert.True(t, found)
					assert.Equal(t, "the "+key, value)
				}
			})
		}
		all.Wait()
		sizes := []int{}
		for _, keys := range cloud.asked {
			sizes = append(sizes, len(keys))
		}
		assert.Equal(t, []int{1, 40, 40, 20}, sizes)
	})
}

func TestAnAnswerIsNeverOlderThanItsQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := &answers{}
		a := New(cloud.ask, 10)
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = a.Get(t.Context(), "one") })
		time.Sleep(time.Second / 2) // the call is under way: what it sees may be old
		begin := time.Now()
		_, _, err := a.Get(t.Context(), "one")
		require.NoError(t, err)
		assert.Equal(t, 3*time.Second/2, time.Since(begin))
		all.Wait()
	})
}

func TestWhoLeavesDoesNotEndTheCallForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := &answers{}
		a := New(cloud.ask, 10)
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = a.Get(t.Context(), "first") })
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		all.Go(func() {
			_, _, err := a.Get(ctx, "two")
			assert.ErrorIs(t, err, context.Canceled)
		})
		all.Go(func() {
			_, found, err := a.Get(t.Context(), "three")
			if assert.NoError(t, err) {
				assert.True(t, found)
			}
		})
		synctest.Wait()
		cancel()
		all.Wait()

		// Nor does a question that nobody waits for any more spoil a later one.
		all.Go(func() { _, _, _ = a.Get(t.Context(), "first") })
		synctest.Wait()
		gone, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		_, _, err := a.Get(gone, "left")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		_, found, err := a.Get(t.Context(), "late")
		require.NoError(t, err)
		assert.True(t, found)
		all.Wait()
		for _, keys := range cloud.asked {
			assert.NotContains(t, keys, "left")
		}
	})
}

func TestAFailureIsEverybodys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := &answers{err: errors.New("down")}
		a := New(cloud.ask, 10)
		_, _, err := a.Get(t.Context(), "one")
		assert.ErrorContains(t, err, "down")
	})
}

func TestEachWhoWaitsIsToldWhenTheCloudWasAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(func(ctx context.Context, _ []string) (map[string]string, error) {
			time.Sleep(time.Minute) // the request waits for its turn
			providers.NoteAsked(ctx, time.Now())
			time.Sleep(time.Second)
			return nil, nil
		}, 2)
		var all sync.WaitGroup
		for _, key := range []string{"one", "another", "a third", "one"} {
			all.Go(func() {
				ctx, asked := providers.WithAsked(t.Context())
				_, _, _ = a.Get(ctx, key)
				assert.Equal(t, time.Second, time.Since(asked.At()))
			})
		}
		all.Wait()
	})
}

func TestTheSameQuestionJoinsABatchThatIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := &answers{}
		a := New(cloud.ask, 1)
		var all sync.WaitGroup
		for _, key := range []string{"first", "two", "two", "two"} {
			all.Go(func() { _, _, _ = a.Get(t.Context(), key) })
			synctest.Wait()
		}
		all.Wait()
		assert.Equal(t, [][]string{{"first"}, {"two"}}, cloud.asked)
	})
}

func TestWhoLeavesTakesNoOtherBatchAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cloud := &answers{}
		a := New(cloud.ask, 1)
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = a.Get(t.Context(), "first") })
		synctest.Wait()
		hurried, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		for key, ctx := range map[string]context.Context{"left": hurried, "waits": t.Context()} {
			all.Go(func() {
				_, found, err := a.Get(ctx, key)
				assert.Equal(t, key == "waits", found && err == nil)
			})
		}
		all.Wait()
		_, _, err := a.Get(hurried, "late")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
		assert.Equal(t, [][]string{{"first"}, {"waits"}}, cloud.asked, "whoever has no time left asks nothing")
	})
}
