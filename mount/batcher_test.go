package mount

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestConcurrentCallersShareABatchThatBeginsAfterTheirCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = time.Minute
		var batches []map[string]bool
		s := batcher[string, time.Time]{run: func(asked map[string]bool) (time.Time, error) {
			began := time.Now()
			batches = append(batches, asked)
			time.Sleep(takes)
			if asked["bad"] {
				return time.Time{}, errors.ErrUnsupported
			}
			return began, nil
		}}
		var callers sync.WaitGroup
		for i := range 20 { // during the first run, and the second
			callers.Go(func() {
				time.Sleep(time.Duration(i) * (takes/10 - time.Millisecond))
				asked := time.Now()
				began, err := s.get(t.Context(), strconv.Itoa(i))
				assert.False(t, began.Before(asked), "the result is older than the call")
				assert.NoError(t, err)
			})
		}
		callers.Wait()
		require.Len(t, batches, 3)
		assert.Len(t, batches[0], 1)
		assert.Len(t, batches[1], 10)
		assert.Len(t, batches[2], 9)

		_, err := s.get(t.Context(), "bad")
		require.ErrorIs(t, err, errors.ErrUnsupported)
		gaveUp := errors.New("the caller gave up")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, gaveUp)
		defer cancel()
		_, err = s.get(ctx, "late")
		require.ErrorIs(t, err, gaveUp)
		synctest.Wait()
		_, err = s.get(t.Context(), "later")
		require.NoError(t, err, "a batch that nobody waits for does not block the next")
	})
}
