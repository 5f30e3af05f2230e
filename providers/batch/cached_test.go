package batch

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWhatIsKeptIsAskedForOnceByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, failure := 0, errors.New("away")
		k := Cache("which server this is", func(ctx context.Context) (string, error) {
			asked++
			select {
			case <-time.After(time.Second):
				return "i-1", failure
			case <-ctx.Done():
				return "", ctx.Err()
			}
		})
		_, known := k.Known()
		assert.False(t, known)
		_, err := k.Get(t.Context())
		require.ErrorIs(t, err, failure)
		_, known = k.Known()
		assert.False(t, known, "a failure is not kept")

		hurried, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = k.Get(hurried)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, "it is still being asked which server this is: context deadline exceeded")
		synctest.Wait()

		asked, failure = 0, nil
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 50 * time.Millisecond) // the others come while it is being asked
				value, err := k.Get(t.Context())
				if assert.NoError(t, err) {
					assert.Equal(t, "i-1", value)
				}
			})
		}
		all.Wait()
		assert.Equal(t, 1, asked)

		begin := time.Now()
		value, err := k.Get(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "i-1", value)
		assert.Zero(t, time.Since(begin))
		_, err = k.Get(hurried)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		assert.False(t, k.Drop("i-2"), "that is another by now")
		assert.True(t, k.Drop("i-1"))
		assert.False(t, k.Drop("i-1"))
		_, err = k.Get(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 2, asked)
	})
}
