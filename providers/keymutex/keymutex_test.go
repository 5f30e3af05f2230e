package keymutex

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLockIsFIFO(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k KeyMutex
		begin := time.Now()
		var all sync.WaitGroup
		for i := range 5 {
			for _, key := range []string{"a", "b"} {
				all.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					unlock, waited, err := k.Lock(t.Context(), key)
					if assert.NoError(t, err) {
						assert.Equal(t, i > 0, waited)
						assert.Equal(t, time.Duration(i)*time.Second, time.Since(begin))
						time.Sleep(time.Second)
						unlock()
					}
				})
			}
		}
		all.Wait()
		assert.Equal(t, 5*time.Second, time.Since(begin))
		assert.True(t, k.Idle())
	})
}

func TestACancelledWaiterBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k KeyMutex
		unlock, _, err := k.Lock(t.Context(), "a")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			time.Sleep(time.Millisecond)
			unlock, waited, err := k.Lock(t.Context(), "a") // behind the one that gives up
			if assert.NoError(t, err) {
				assert.True(t, waited)
				unlock()
			}
		})
		begin := time.Now()
		_, _, err = k.Lock(ctx, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(begin))
		assert.False(t, k.Idle())
		unlock()
		all.Wait()
		_, _, err = k.Lock(ctx, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.True(t, k.Idle())
	})
}
