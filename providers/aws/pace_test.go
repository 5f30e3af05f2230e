package aws

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPaceIsInNobodysWayWithoutThrottling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pace{turn: make(chan struct{}, 1)}
		begin := time.Now()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				done, err := p.wait(t.Context())
				if assert.NoError(t, err) {
					time.Sleep(time.Second) // all at once
					done(false, 0)
				}
			})
		}
		all.Wait()
		assert.Equal(t, time.Second, time.Since(begin))
	})
}

func TestAThrottledNodeAsksLikeOneHoweverManyItsVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pace{turn: make(chan struct{}, 1)}
		p.learn(0, true, 0)
		var mu sync.Mutex
		asking, asked := 0, 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				for {
					done, err := p.wait(ctx)
					if err != nil {
						return
					}
					mu.Lock()
					asking++
					asked++
					assert.Equal(t, 1, asking)
					mu.Unlock()
					time.Sleep(50 * time.Millisecond)
					mu.Lock()
					asking--
					mu.Unlock()
					done(true, 0)
				}
			})
		}
		all.Wait()
		assert.Greater(t, asked, 5)
		assert.Less(t, asked, 25, "pauses grow to several seconds")
	})
}

func TestWhatTheCloudAsksForIsHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pace{turn: make(chan struct{}, 1)}
		p.learn(0, true, 30*time.Second)
		begin := time.Now()
		done, err := p.wait(t.Context())
		require.NoError(t, err)
		assert.GreaterOrEqual(t, time.Since(begin), 30*time.Second)
		assert.Less(t, time.Since(begin), 31*time.Second)
		done(false, 0)
		begin = time.Now()
		_, err = p.wait(t.Context())
		require.NoError(t, err)
		assert.Zero(t, time.Since(begin), "one success, and all is as before")
	})
}
