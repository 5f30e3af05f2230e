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

func TestOneAtATimeHasAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k KeyMutex
		begin := time.Now()
		var all sync.WaitGroup
		for range 5 {
			for _, key := range []string{"a", "b"} {
				all.Go(func() {
					unlock, err := k.Lock(t.Context(), key)
					if assert.NoError(t, err) {
						time.Sleep(time.Second)
						unlock()
					}
				})
			}
		}
		all.Wait()
		assert.Equal(t, 5*time.Second, time.Since(begin))
		assert.Empty(t, k.held)
	})
}

func TestWhoHasNoTimeLeftDoesNotGetAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k KeyMutex
		unlock, err := k.Lock(t.Context(), "a")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err = k.Lock(ctx, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(begin))
		unlock()
		_, err = k.Lock(ctx, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		unlock, err = k.Lock(t.Context(), "a")
		require.NoError(t, err)
		unlock()
	})
}
