package pace

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestPaceIsInNobodysWayWithoutThrottling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		begin := time.Now()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				done, err := p.Wait(t.Context())
				if assert.NoError(t, err) {
					time.Sleep(time.Second) // all at once
					done("", 0)
				}
			})
		}
		all.Wait()
		assert.Equal(t, time.Second, time.Since(begin))
	})
}

func TestAThrottledNodeAsksLikeOneHoweverManyItsVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		p.learn(0, "refused", 0)
		var mu sync.Mutex
		asking, asked := 0, 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				for {
					done, err := p.Wait(ctx)
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
					done("refused", 0)
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
		p := New()
		p.learn(0, "refused", 30*time.Second)
		begin := time.Now()
		done, err := p.Wait(t.Context())
		require.NoError(t, err)
		assert.GreaterOrEqual(t, time.Since(begin), 30*time.Second)
		assert.Less(t, time.Since(begin), 31*time.Second)
		done("", 0)
		begin = time.Now()
		_, err = p.Wait(t.Context())
		require.NoError(t, err)
		assert.Zero(t, time.Since(begin), "one success, and all is as before")
	})
}

func TestRefusalsThatComeTogetherCountAsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				done, err := p.Wait(t.Context())
				if assert.NoError(t, err) {
					time.Sleep(100*time.Millisecond + time.Duration(i)*time.Microsecond)
					if i%2 == 0 {
						done("refused", 3*time.Second) // half of them, who are asked to wait
					} else {
						done("", 0)
					}
				}
			})
		}
		all.Wait()
		begin := time.Now()
		done, err := p.Wait(t.Context())
		require.NoError(t, err)
		assert.GreaterOrEqual(t, time.Since(begin), 3*time.Second, "a success from before does not make it forgotten")
		assert.LessOrEqual(t, time.Since(begin), 3*time.Second+general.first)
		done("", 0)

		// Whoever has queued meanwhile is let go of at once, not one after the other's answer.
		begin = time.Now()
		for range 50 {
			all.Go(func() {
				done, err := p.Wait(t.Context())
				if assert.NoError(t, err) {
					time.Sleep(time.Second)
					done("", 0)
				}
			})
		}
		all.Wait()
		assert.Equal(t, time.Second, time.Since(begin))
	})
}

func TestTheLastRequestForNowIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		begin := time.Now()
		for range 10 {
			done, err := p.Wait(t.Context())
			require.NoError(t, err)
			done("", time.Second) // as often as it comes: the pause does not grow
		}
		assert.Equal(t, "its limit is used up", p.Why())
		assert.GreaterOrEqual(t, time.Since(begin), 9*time.Second)
		assert.LessOrEqual(t, time.Since(begin), 9*(time.Second+general.first))
		done, err := p.Wait(t.Context())
		require.NoError(t, err)
		done("", 0)
		assert.Empty(t, p.Why())
	})
}

// Callers that have less time than the cloud wants do not put the moment off for those who come later.
func TestTheMomentToAskAgainStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		p.learn(0, "refused", 30*time.Second)
		begin := time.Now()
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := p.Wait(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
		}
		done, err := p.Wait(t.Context())
		require.NoError(t, err)
		assert.Less(t, time.Since(begin), 31*time.Second)
		done("", 0)
	})
}

func TestTheAgeOfAnAnswerCountsFromTheRequestThatWasHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		ctx, asked := providers.WithAsked(t.Context())
		send := func(refusal string, takes time.Duration) {
			done, err := p.Wait(ctx)
			require.NoError(t, err)
			time.Sleep(takes)
			done(refusal, 0)
		}
		send("too many", time.Second)
		assert.Zero(t, asked.At(), "it was not heard")
		send("too many", time.Second)
		begin := time.Now()
		send("", time.Second)
		heard := asked.At()
		assert.Positive(t, heard.Sub(begin), "it waited for its turn")
		assert.Equal(t, time.Second, time.Since(heard))
		send("too many", time.Second)
		send("", time.Second)
		assert.Equal(t, heard, asked.At(), "the answer is as old as its first part")
	})
}

func TestOfAnswersThatComeTogetherTheLatestMomentCounts(t *testing.T) {
	for _, afters := range [][]time.Duration{{3 * time.Second, 10 * time.Second}, {10 * time.Second, 3 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			p := New()
			var dones []func(string, time.Duration)
			for range afters {
				done, err := p.Wait(t.Context())
				require.NoError(t, err)
				dones = append(dones, done)
			}
			for i, done := range dones {
				done("refused", afters[i])
			}
			begin := time.Now()
			done, err := p.Wait(t.Context())
			require.NoError(t, err)
			assert.GreaterOrEqual(t, time.Since(begin), 10*time.Second)
			assert.Less(t, time.Since(begin), 11*time.Second)
			done("", 0)
		})
	}
}

func TestPausesShrinkAsTheyGrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		ask := func(refusal string, after time.Duration) (paused time.Duration) {
			begin := time.Now()
			done, err := p.Wait(t.Context())
			require.NoError(t, err)
			paused = time.Since(begin)
			done(refusal, after)
			return paused
		}
		for range 3 {
			ask("refused", 0)
		}
		assert.Equal(t, "refused", p.Why())
		for _, most := range []time.Duration{4 * general.first, 2 * general.first, general.first} {
			paused := ask("", 0)
			assert.GreaterOrEqual(t, paused, most/2)
			assert.LessOrEqual(t, paused, most)
		}
		assert.Empty(t, p.Why())
		assert.Zero(t, ask("", 0))

		ask("", 5*time.Second) // a success that says that the limit is used up
		assert.Equal(t, "its limit is used up", p.Why())
		assert.GreaterOrEqual(t, ask("refused", time.Second), 5*time.Second)
		ask("", 5*time.Second)
		assert.Equal(t, "refused", p.Why(), "why it was throttled first")
	})
}

func TestWhoQueuesIsNotHeldUpByAnotherOnceItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		p.learn(0, "refused", 3*time.Second)
		begin := time.Now()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				done, err := p.Wait(t.Context())
				if assert.NoError(t, err) {
					time.Sleep(time.Second)
					done("", 0)
				}
			})
		}
		all.Wait()
		assert.Less(t, time.Since(begin), 3*time.Second+general.first+2*time.Second+time.Millisecond, "the first alone, then all others")
	})
}

// throttled has a caller refused for so long, and returns when requests were sent.
func throttled(t *testing.T, p *Pace, lasts time.Duration) (sent []time.Time) {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < lasts; {
		done, err := p.Wait(t.Context())
		require.NoError(t, err)
		sent = append(sent, time.Now())
		done("refused", 0)
	}
	return sent
}

// So a large fleet, in which each node waits for long, is not refused all the more, and comes to its end in time nevertheless.
func TestPausesGrowWithTheTimeForWhichTheCloudThrottles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		begin := time.Now()
		sent := throttled(t, p, 2*time.Hour)
		longest := time.Duration(0)
		for i, at := range sent[1:] {
			since, pause := at.Sub(begin), at.Sub(sent[i])
			assert.LessOrEqual(t, pause, max(since/5, general.mostAtFirst))
			assert.LessOrEqual(t, pause, mostDelay)
			longest = max(longest, pause)
		}
		assert.Greater(t, longest, mostDelay/2)
		early := slices.IndexFunc(sent, func(at time.Time) bool { return at.Sub(begin) > 200*time.Second })
		assert.Less(t, early, 40, "25 s at 200 s, not 8")
	})
}

// The cloud may have had enough for all since.
func TestThrottlingAfterASilenceIsAnotherOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		throttled(t, p, time.Minute)
		time.Sleep(6 * time.Hour)
		begin := time.Now()
		done, err := p.Wait(t.Context())
		require.NoError(t, err)
		assert.Zero(t, time.Since(begin), "it has waited long enough")
		done("refused", 0)
		sent := throttled(t, p, time.Minute)
		for i, at := range sent[1:] {
			assert.LessOrEqual(t, at.Sub(sent[i]), general.mostAtFirst+time.Minute/5)
		}
	})
}

// A caller that gives up does not put off the moment at which the next may ask.
func TestAPauseGoesOnWithoutItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		throttled(t, p, 10*time.Minute)
		begin := time.Now()
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			done, err := p.Wait(ctx)
			cancel()
			if err == nil {
				done("", 0)
				break
			}
			require.Less(t, time.Since(begin), mostDelay)
		}
		assert.LessOrEqual(t, time.Since(begin), 12*time.Minute/5+5*time.Second, "the last refusal came within 12 minutes")
	})
}

// asks sends one request, and returns how long it waited to be sent.
func asks(t *testing.T, p *Pace, refusal string, after time.Duration) (waited time.Duration) {
	t.Helper()
	begin := time.Now()
	done, err := p.Wait(t.Context())
	require.NoError(t, err)
	waited = time.Since(begin)
	done(refusal, after)
	return waited
}

func TestFromABucketWhoeverComesTakesWhatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewBucket()
		pauses := func(longest time.Duration, refusal string) {
			t.Helper()
			waited := asks(t, p, refusal, 0)
			assert.GreaterOrEqual(t, waited, longest/2)
			assert.LessOrEqual(t, waited, longest)
		}
		asks(t, p, "refused", 0)
		pauses(time.Second, "refused")
		pauses(4*time.Second, "refused")
		pauses(bucket.mostAtFirst, "")
		assert.Zero(t, asks(t, p, "", 0), "after a success at once")
		assert.Zero(t, asks(t, p, "", 0))
		assert.Zero(t, asks(t, p, "refused", 0))
		pauses(3*time.Second, "refused") // three successes and a refusal: an eighth, twice
		pauses(bucket.mostAtFirst, "")
		assert.Equal(t, "refused", p.Why())
		for range 4 {
			assert.Zero(t, asks(t, p, "", 0))
		}
		assert.Empty(t, p.Why(), "it is over")

		asks(t, p, "", 5*time.Second) // a success that says that the limit is used up
		assert.GreaterOrEqual(t, asks(t, p, "refused", 20*time.Second), 5*time.Second)
		assert.GreaterOrEqual(t, asks(t, p, "", 0), 20*time.Second, "the time that the cloud asks for is heeded")
	})
}

// inParallel has callers send one request each, and returns how many of them were sent in each time that a request takes.
func inParallel(t *testing.T, p *Pace, callers int, takes time.Duration) (sent []int) {
	t.Helper()
	begin := time.Now()
	var mu sync.Mutex
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			done, err := p.Wait(t.Context())
			if assert.NoError(t, err) {
				mu.Lock()
				round := int(time.Since(begin) / takes)
				sent = append(sent, make([]int, max(0, round+1-len(sent)))...)
				sent[round]++
				mu.Unlock()
				time.Sleep(takes)
				done("", 0)
			}
		})
	}
	all.Wait()
	return sent
}

func TestABucketIsTriedWithTwoRequestsAfterASilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 100 * time.Millisecond
		p := NewBucket()
		assert.Equal(t, []int{2, 3}, inParallel(t, p, 5, takes), "five take as long as two, one after the other")
		assert.Equal(t, []int{60}, inParallel(t, p, 60, takes), "it has answered lately")
		time.Sleep(silenceAfter + takes)
		assert.Equal(t, []int{2, 8, 90}, inParallel(t, p, 100, takes))
		assert.Equal(t, []int{100}, inParallel(t, New(), 100, takes))
	})
}

func TestABucketThatIsEmptyRefusesTwoRequestsOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewBucket()
		var mu sync.Mutex
		sent := 0
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				done, err := p.Wait(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				sent++
				mu.Unlock()
				time.Sleep(100 * time.Millisecond)
				done("refused", 0)
			})
		}
		all.Wait()
		assert.Equal(t, bucket.window, sent)
	})
}

func TestARequestThatHangsHoldsNobodyUpForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewBucket()
		for range bucket.window {
			_, err := p.Wait(t.Context()) // and is not answered
			require.NoError(t, err)
		}
		begin := time.Now()
		inParallel(t, p, 20, time.Millisecond)
		assert.Equal(t, patience+time.Millisecond, time.Since(begin))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p.window = 0
		_, err := p.Wait(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// fleet has all nodes of a fleet begin at one moment to send requests, each until the bucket has served it, and returns how long that
// took, as a multiple of what the bucket allows, and how often it refused for each success.
func fleet(nodes, each int) (took, refused float64) {
	const size, perSecond = 50, 5
	var mu sync.Mutex
	tokens, filled, refusals := float64(size), time.Now(), 0
	request := func() (refusal string) {
		time.Sleep(50 * time.Millisecond)
		defer time.Sleep(50 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		tokens, filled = min(size, tokens+perSecond*time.Since(filled).Seconds()), time.Now()
		if tokens < 1 {
			refusals++
			return "refused"
		}
		tokens--
		return ""
	}
	begin := time.Now()
	var all sync.WaitGroup
	for range nodes {
		p := NewBucket()
		for range each {
			all.Go(func() {
				for refusal := "not yet"; refusal != ""; {
					done, err := p.Wait(context.Background())
					if err != nil {
						panic(err)
					}
					refusal = request()
					done(refusal, 0)
				}
			})
		}
	}
	all.Wait()
	return time.Since(begin).Seconds() * perSecond / float64(nodes*each-size), float64(refusals) / float64(nodes*each)
}

// Without anything that the nodes know of each other, the last of them is done soon after the best moment, and few requests are in vain.
// The
// standard deviations of the means of 10 runs are 0.02 and 0.02, so the limits are more than four of them away.
func TestAFleetSharesABucket(t *testing.T) {
	for _, f := range []struct {
		nodes, each   int
		took, refused float64
	}{{50, 5, 1.25, 1.4}, {200, 1, 1.35, 2.7}, {200, 5, 1.25, 2.6}} {
		var took, refused float64
		const runs = 10
		for range runs {
			synctest.Test(t, func(*testing.T) {
				oneTook, oneRefused := fleet(f.nodes, f.each)
				took += oneTook / runs
				refused += oneRefused / runs
			})
		}
		t.Logf("%d x %d: %.3f of the best time, %.3f refused for each success", f.nodes, f.each, took, refused)
		assert.Less(t, took, f.took, "%d x %d", f.nodes, f.each)
		assert.Less(t, refused, f.refused, "%d x %d", f.nodes, f.each)
	}
}
