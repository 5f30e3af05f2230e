package rest

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func unix(in time.Duration) string { return strconv.FormatInt(time.Now().Add(in).Unix(), 10) }

func TestThrottlingIsWaitedOut(t *testing.T) {
	for name, headers := range map[string]func() []string{
		"seconds": func() []string { return []string{"Retry-After", "20"} },
		"date": func() []string {
			return []string{"Retry-After", time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat)}
		},
		"reset": func() []string {
			return []string{"RateLimit-Remaining", "0", "RateLimit-Reset", unix(20 * time.Second)}
		},
		"reset of X-": func() []string {
			return []string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", unix(20 * time.Second)}
		},
		"a node whose clock is wrong": func() []string {
			return []string{"RateLimit-Remaining", "0", "RateLimit-Reset", unix(time.Hour + 20*time.Second), "Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, cloud := reached(Config{}, says(429, headers()...), ok)
				begin := time.Now()
				status, _, err := ask(t.Context(), c, "POST", "body")
				require.NoError(t, err)
				assert.Equal(t, 200, status)
				assert.GreaterOrEqual(t, time.Since(begin), 20*time.Second)
				assert.LessOrEqual(t, time.Since(begin), 26*time.Second)
				assert.Len(t, cloud.asked, 2)
			})
		})
	}
}

func TestALimitThatIsNotReachedDelaysNoRequest(t *testing.T) {
	for _, headers := range [][]string{
		{"Retry-After", "20"}, // of another kind of answer, such as a redirect
		{"RateLimit-Remaining", "1", "RateLimit-Reset", "2000000000"},
		{"RateLimit-Reset", "2000000000"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := reached(Config{}, says(200, headers...), ok)
			begin := time.Now()
			for range 2 {
				_, _, err := ask(t.Context(), c, "GET", "")
				require.NoError(t, err)
			}
			assert.Zero(t, time.Since(begin))
		})
	}
}

// A limit that refills all the time has room for one request after a part of the time until it is full.
func TestALimitThatRefillsIsWaitedForOneRequestLong(t *testing.T) {
	for refills, least := range map[bool]time.Duration{false: 100 * time.Second, true: 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := reached(Config{Refills: refills}, says(200, "RateLimit-Remaining", "0", "RateLimit-Limit", "10", "RateLimit-Reset", unix(100*time.Second)), ok)
			begin := time.Now()
			for range 2 {
				_, _, err := ask(t.Context(), c, "GET", "")
				require.NoError(t, err)
			}
			assert.GreaterOrEqual(t, time.Since(begin), least)
			assert.LessOrEqual(t, time.Since(begin), least+least/4+time.Second)
		})
	}
}

func TestInvalidRateLimitHeadersAreIgnored(t *testing.T) {
	for _, headers := range [][]string{
		{"Retry-After", "-5"},
		{"Retry-After", "soon"},
		{"Retry-After", "99999999999999999999"},
		{"Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT"},
		{"RateLimit-Remaining", "0", "RateLimit-Reset", "-1"},
		{"RateLimit-Remaining", "0", "RateLimit-Reset", "20"},
		{"RateLimit-Remaining", "0"},
		{"RateLimit-Remaining", "many", "RateLimit-Reset", "99999999999"},
		{"RateLimit-Remaining", "0", "RateLimit-Reset", "99999999999", "RateLimit-Limit", "0"},
		{"RateLimit-Remaining", "0", "RateLimit-Reset", "9223372036854775807", "RateLimit-Limit", "x"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, cloud := reached(Config{Refills: true}, says(429, headers...), says(200, headers...), ok)
			begin := time.Now()
			for range 3 {
				_, _, err := ask(t.Context(), c, "GET", "")
				require.NoError(t, err)
			}
			assert.LessOrEqual(t, time.Since(begin), 2*(longest+spread+time.Second), "%v", headers)
			assert.Len(t, cloud.asked, 4)
		})
	}
}

func TestThrottlingEndsWithTheCallersTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cloud := reached(Config{}, says(429))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		_, _, err := ask(ctx, c, "GET", "")
		require.ErrorIs(t, err, providers.ErrBusy)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Minute, time.Since(begin))
		assert.Less(t, len(cloud.asked), 25, "pauses grow")
	})
}

func TestOneCallerAtATimeTriesWhileTheCloudThrottles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		c, cloud := reached(Config{}, func(r *http.Request) (*http.Response, error) {
			if open.Load() {
				return ok(r)
			}
			return says(429)(r)
		})
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				status, _, err := ask(t.Context(), c, "POST", "body")
				if assert.NoError(t, err) {
					assert.Equal(t, 200, status)
				}
			})
		}
		synctest.Wait()
		burst := cloud.times()
		time.Sleep(time.Minute)
		assert.Less(t, cloud.times()-burst, 25, "a hundred callers ask like one")
		open.Store(true)
		begin := time.Now()
		all.Wait()
		assert.Less(t, time.Since(begin), 40*time.Second, "all go on when it is over")
	})
}

func TestAUsedUpLimitIsWaitedForWithoutARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cloud := reached(Config{}, says(200, "RateLimit-Remaining", "0", "RateLimit-Reset", unix(30*time.Second)), ok)
		_, _, err := ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		begin := time.Now()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				_, _, err := ask(t.Context(), c, "GET", "")
				assert.NoError(t, err)
			})
		}
		time.Sleep(29 * time.Second)
		assert.Equal(t, 1, cloud.times())
		all.Wait()
		assert.GreaterOrEqual(t, time.Since(begin), 30*time.Second)
		assert.Less(t, time.Since(begin), 40*time.Second)
		assert.Len(t, cloud.asked, 11)
	})
}

// A caller whose time is shorter than the wait does not make it longer for the next.
func TestTheMomentOfTheResetStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cloud := reached(Config{}, says(200, "RateLimit-Remaining", "0", "RateLimit-Reset", unix(time.Minute)), ok)
		_, _, err := ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		begin := time.Now()
		for err = providers.ErrBusy; err != nil; {
			ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
			_, _, err = ask(ctx, c, "GET", "")
			cancel()
		}
		assert.Less(t, time.Since(begin), 72*time.Second)
		assert.Len(t, cloud.asked, 2)
	})
}

func TestALimitThatRefillsIsWaitedForBitByBit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Client
		c, _ = reached(Config{Refills: true}, func(r *http.Request) (*http.Response, error) {
			return says(200, "RateLimit-Limit", "3600", "RateLimit-Remaining", "0", "RateLimit-Reset", unix(time.Hour))(r)
		})
		begin := time.Now()
		for range 61 {
			_, _, err := ask(t.Context(), c, "GET", "")
			require.NoError(t, err)
		}
		assert.GreaterOrEqual(t, time.Since(begin), time.Minute)
		assert.Less(t, time.Since(begin), 90*time.Second)
	})
}

func TestNodesDoNotReturnInStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clouds := make([]*cloud, 100)
		var all sync.WaitGroup
		for i := range clouds {
			var c *Client
			c, clouds[i] = reached(Config{}, says(429, "Retry-After", "60"), ok)
			all.Go(func() {
				_, _, err := ask(t.Context(), c, "GET", "")
				assert.NoError(t, err)
			})
		}
		all.Wait()
		seconds := map[int64]int{}
		for _, c := range clouds {
			seconds[c.asked[1].at.Unix()]++
		}
		assert.Greater(t, len(seconds), 5)
	})
}
