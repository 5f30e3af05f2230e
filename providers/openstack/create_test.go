package openstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	front "github.com/blockvol/blockvol/test/cloud/openstack"
)

// interleavings runs a test with n seeds, with and without reads of the maximum age.
func interleavings(t *testing.T, n uint64, test func(t *testing.T, cfg cloud.Config, dice *rand.Rand)) {
	t.Helper()
	for seed := range n {
		dice := rand.New(rand.NewPCG(seed, 1))
		cfg := cloud.Config{Times: slow, Latency: time.Duration(dice.Int64N(int64(400 * time.Millisecond))), Seed: seed}
		if seed%3 > 0 {
			cfg.Lag = usual.lag
		}
		if seed%5 == 0 {
			cfg.Times.Create = time.Duration(dice.Int64N(int64(30 * time.Second)))
		}
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { test(t, cfg, dice) })
	}
}

func TestConcurrentCreatesGetOneVolumeAndLeaveNoOther(t *testing.T) {
	interleavings(t, 150, func(t *testing.T, cfg cloud.Config, dice *rand.Rand) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			nodes := 2 + dice.IntN(4)
			within := time.Duration(dice.Int64N(int64(12 * time.Second)))
			ids := make([]string, nodes)
			var calls []func()
			for i := range nodes {
				p, after := w.on(w.node()), time.Duration(dice.Int64N(int64(within+1)))
				calls = append(calls, func() {
					time.Sleep(after)
					v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: int64(1+i) * gib})
					if assert.NoError(t, err) {
						ids[i] = v.ID
					}
				})
			}
			providertest.AtOnce(calls...)
			for _, id := range ids {
				assert.Equal(t, ids[0], id)
			}
			assert.Equal(t, []string{ids[0]}, w.idsOf("db", stateSettled))
			assert.Equal(t, 1, w.volumes(), "no orphan")
		})
	})
}

// Whenever a maker dies, the others get one volume; its candidate is never used, and is deleted with the volume.
func TestDeadMakersDoNotBlockOthers(t *testing.T) {
	interleavings(t, 150, func(t *testing.T, cfg cloud.Config, dice *rand.Rand) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			nodes, doomed := 2+dice.IntN(3), 1+dice.IntN(2)
			var ids [8]string
			var calls []func()
			for i := range nodes + doomed {
				server := w.node()
				link := &transport{RoundTripper: w.front.Transport(server)}
				p, after, life := w.onBy(server, link), time.Duration(dice.Int64N(int64(8*time.Second))), time.Duration(dice.Int64N(int64(15*time.Second)))
				calls = append(calls, func() {
					time.Sleep(after)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if i >= nodes {
						time.AfterFunc(life, func() {
							link.do(func(*http.Request, string) (*http.Response, error) { return nil, errors.New("dead") })
							cancel()
						})
					}
					v, err := p.Create(ctx, providers.Spec{Name: "db", Size: gib})
					if err == nil {
						ids[i] = v.ID
					} else {
						assert.GreaterOrEqual(t, i, nodes, "%v", err)
					}
				})
			}
			providertest.AtOnce(calls...)
			for _, id := range ids[:nodes+doomed] {
				if id != "" {
					assert.Equal(t, ids[0], id)
				}
			}
			assert.Equal(t, []string{ids[0]}, w.idsOf("db", stateSettled))
			assert.LessOrEqual(t, w.volumes(), 1+doomed)
			p := w.on(w.node())
			time.Sleep(usual.lag)
			v, err := p.Find(t.Context(), "db")
			require.NoError(t, err)
			assert.Equal(t, ids[0], v.ID)

			time.Sleep(usual.ancient + time.Minute)
			require.NoError(t, p.Delete(t.Context(), v.ID))
			time.Sleep(time.Minute)
			assert.Zero(t, w.volumes(), "orphans are deleted with the volume of their name")
		})
	})
}

func TestACandidateIsNotUsedAsAVolume(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		server := w.node()
		link := &transport{RoundTripper: w.front.Transport(server)}
		a, b := w.onBy(server, link), w.on(w.node())
		link.do(func(_ *http.Request, body string) (*http.Response, error) {
			if strings.Contains(body, stateSettled) {
				return nil, errors.New("no way")
			}
			return nil, nil
		})
		_, err := a.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		sentence(t, err, "no way")
		require.Len(t, w.idsOf("db", stateClaimed), 1)
		id := w.idsOf("db", stateClaimed)[0]

		_, err = b.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
		list, err := b.List(t.Context())
		require.NoError(t, err)
		assert.Empty(t, list)
		require.ErrorIs(t, providertest.Attach(t.Context(), b, id), providers.ErrNotFound)
		require.ErrorIs(t, b.Forget(t.Context(), id), providers.ErrNotFound)
		require.NoError(t, b.Delete(t.Context(), id))
		_, err = b.Adopt(t.Context(), id, providers.Spec{Name: "mine"})
		require.ErrorIs(t, err, providers.ErrInvalid)
		assert.Equal(t, []string{id}, w.idsOf("db", stateClaimed))

		// Its maker continues with it.
		link.do(nil)
		v := w.create(a, "db")
		assert.Equal(t, id, v.ID)
		assert.Equal(t, 1, w.volumes())
	})
}

// Its age is by the cloud's clock. Without that, a node waits as for any other candidate.
func TestAnOldOrphanIsIgnoredIfTheCloudTellsTheTime(t *testing.T) {
	for _, noDate := range []bool{false, true} {
		inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
			server := w.node()
			link := &transport{RoundTripper: w.front.Transport(server)}
			link.do(func(_ *http.Request, body string) (*http.Response, error) {
				if strings.Contains(body, stateSettled) {
					return nil, errors.New("no way")
				}
				return nil, nil
			})
			_, err := w.onBy(server, link).Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			require.Error(t, err)
			time.Sleep(usual.ancient + time.Minute)
			begin := time.Now()
			v := w.create(w.on(w.node()), "db")
			assert.Equal(t, noDate, time.Since(begin) >= usual.patience, "%v", time.Since(begin))
			assert.Equal(t, []string{v.ID}, w.idsOf("db", stateSettled))
		}, func(cfg *front.Config) { cfg.NoDate = noDate })
	}
}

// A maker that was stopped for longer than others wait for it does not settle its candidate.
func TestAStoppedMakerFindsTheOthersVolume(t *testing.T) {
	for _, at := range []string{stateClaimed, stateSettled} {
		inWorld(t, cloud.Config{Times: slow, Lag: usual.lag, Latency: 100 * time.Millisecond}, func(t *testing.T, w *world) {
			server := w.node()
			link := &transport{RoundTripper: w.front.Transport(server)}
			a, b := w.onBy(server, link), w.on(w.node())
			var stopped atomic.Bool
			link.do(func(r *http.Request, body string) (*http.Response, error) {
				if strings.Contains(body, at) && stopped.CompareAndSwap(false, true) {
					time.Sleep(10 * time.Minute)
					return nil, r.Context().Err()
				}
				return nil, nil
			})
			var first, second *providers.Volume
			providertest.AtOnce(func() {
				var err error
				for range 3 { // its write fails, and it tries again
					if first, err = a.Create(t.Context(), providers.Spec{Name: "db", Size: gib}); err == nil {
						break
					}
				}
				assert.NoError(t, err)
			}, func() {
				time.Sleep(10 * time.Second)
				begin := time.Now()
				second = w.create(b, "db")
				assert.Equal(t, at == stateSettled, time.Since(begin) >= usual.patience-20*time.Second, "others wait for its candidate")
			})
			assert.Equal(t, second.ID, first.ID)
			assert.Equal(t, []string{second.ID}, w.idsOf("db", stateSettled))
			assert.Equal(t, 1, w.volumes())
		})
	}
}

func TestTwoVolumesOfOneNameAreAmbiguousAndUnchanged(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.on(w.node())
		one, two := w.create(a, "one"), w.create(a, "two")
		require.NoError(t, a.write(t.Context(), two.ID, map[string]string{keyName: "one", keyDigest: a.keyOf("one")}))
		for _, p := range []*Provider{a, w.on(w.node())} {
			_, err := p.Find(t.Context(), "one")
			require.ErrorIs(t, err, providers.ErrAmbiguous)
			sentence(t, err, one.ID, two.ID)
			_, err = p.Create(t.Context(), providers.Spec{Name: "one", Size: gib})
			require.ErrorIs(t, err, providers.ErrAmbiguous)
			list, err := p.List(t.Context())
			require.ErrorIs(t, err, providers.ErrAmbiguous)
			assert.Empty(t, list)
		}
		assert.Equal(t, 2, w.volumes())
		require.NoError(t, a.Delete(t.Context(), two.ID), "it can be deleted by its ID")
		_, err := a.Find(t.Context(), "one")
		require.NoError(t, err)
	})
}

func TestALostAnswerCreatesOneVolume(t *testing.T) {
	for _, fault := range []cloud.Fault{cloud.LoseAnswer, cloud.Truncate, cloud.Garbage} {
		inWorld(t, cloud.Config{Times: slow, Lag: usual.lag}, func(t *testing.T, w *world) {
			p := w.on(w.node())
			w.cloud.Inject(cloud.Rule{Action: "POST /volume/v3/{project}/volumes", Times: 1, Fault: fault})
			v := w.create(p, "db")
			assert.Equal(t, []string{v.ID}, w.idsOf("db", stateSettled))
			assert.Equal(t, 1, w.volumes())
		})
	}
}

func TestAVolumeThatCinderCannotCreateIsDeleted(t *testing.T) {
	for _, create := range []time.Duration{time.Second, 20 * time.Second} { // before it is settled, and after
		inWorld(t, cloud.Config{Times: cloud.Times{Create: create}}, func(t *testing.T, w *world) {
			bad := w.on(w.node())
			_, err := bad.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			require.ErrorIs(t, err, providers.ErrBusy)
			sentence(t, err, "gave up", "error")
			assert.Zero(t, w.volumes())
			_, err = bad.Find(t.Context(), "db")
			require.ErrorIs(t, err, providers.ErrNotFound)
		}, func(cfg *front.Config) { cfg.Unmakeable = func(string) bool { return true } })
	}
}

// By then it is the volume of its name, and other nodes know it.
func TestAVolumeThatFailsAfterSettlingIsKept(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Create: 50 * time.Second}}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		for range 2 {
			_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			require.Len(t, w.idsOf("db", stateSettled), 1)
			sentence(t, err, w.idsOf("db", stateSettled)[0], "openstack volume delete")
		}
		assert.Equal(t, 1, w.volumes())
	}, func(cfg *front.Config) { cfg.Unmakeable = func(string) bool { return true } })
}

func TestCreateTakesLittleLongerThanLag(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 50 * time.Millisecond}, func(t *testing.T, w *world) {
		p, begin := w.on(w.node()), time.Now()
		w.create(p, "db")
		assert.Less(t, time.Since(begin), usual.lag+time.Second)
	})
}

// A volume that fails later may hold data, so it is not deleted.
func TestAFailedVolumeIsReportedAndKept(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		link := &transport{RoundTripper: w.front.Transport(server)}
		p := w.onBy(server, link)
		v := w.create(p, "db")
		link.do(func(r *http.Request, _ string) (*http.Response, error) {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/volumes/detail") {
				return nil, nil
			}
			answer, err := link.RoundTripper.RoundTrip(r)
			if err != nil {
				return nil, err
			}
			httpsim.ReplaceBody(answer, `"status":"available"`, `"status":"error"`)
			return answer, nil
		})
		_, err := p.Find(t.Context(), "db")
		sentence(t, err, v.ID, "error", "openstack volume delete")
		require.NotErrorIs(t, err, providers.ErrNotFound)
		_, err = p.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		require.Error(t, err)
		_, err = p.List(t.Context())
		sentence(t, err, `"db"`, v.ID)
		assert.Equal(t, 1, w.volumes())
	})
}

func TestConcurrentCreatesOfOneProcessSendOneRequest(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow, Latency: 50 * time.Millisecond}, func(t *testing.T, w *world) {
		server := w.node()
		link := &transport{RoundTripper: w.front.Transport(server)}
		p := w.onBy(server, link)
		var calls []func()
		for range 5 {
			calls = append(calls, func() { w.create(p, "db") })
		}
		providertest.AtOnce(calls...)
		made := 0
		for _, call := range link.calls() {
			if strings.HasPrefix(call, "POST") && strings.HasSuffix(call, "/volumes") {
				made++
			}
		}
		assert.Equal(t, 1, made)
	})
}

func TestADeleteDuringCreatesLeavesAtMostOneVolume(t *testing.T) {
	interleavings(t, 40, func(t *testing.T, cfg cloud.Config, dice *rand.Rand) {
		cfg.Lag = 0
		inWorld(t, cfg, func(t *testing.T, w *world) {
			a, b, c := w.on(w.node()), w.on(w.node()), w.on(w.node())
			v := w.create(a, "db")
			after := func() { time.Sleep(time.Duration(dice.Int64N(int64(10 * time.Second)))) }
			pauses := []time.Duration{time.Duration(dice.Int64N(int64(10 * time.Second))), time.Duration(dice.Int64N(int64(10 * time.Second)))}
			after()
			providertest.AtOnce(func() {
				assert.NoError(t, a.Delete(t.Context(), v.ID))
			}, func() {
				time.Sleep(pauses[0])
				_, err := b.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
				assert.NoError(t, err)
			}, func() {
				time.Sleep(pauses[1])
				_, err := c.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
				assert.NoError(t, err)
			})
			assert.LessOrEqual(t, len(w.idsOf("db", stateSettled)), 1)
			assert.Equal(t, len(w.idsOf("db", stateSettled)), w.volumes(), "no orphan")
		})
	})
}

// A request to settle without an answer may still be carried out. While it may, the maker does not delete the candidate.
func TestACandidateInDoubtIsNotDeleted(t *testing.T) {
	for _, late := range []time.Duration{20 * time.Second, 10 * time.Minute} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			server := w.node()
			link := &transport{RoundTripper: w.front.Transport(server)}
			p := w.onBy(server, link)
			var first atomic.Bool
			link.do(func(r *http.Request, body string) (*http.Response, error) {
				if !strings.Contains(body, stateSettled) {
					return nil, nil
				}
				if first.CompareAndSwap(false, true) { // it hangs in the cloud, and is carried out after its caller has left
					again := r.Clone(context.Background())
					time.AfterFunc(usual.life+late, func() {
						again.Body = io.NopCloser(strings.NewReader(body))
						if answer, err := link.RoundTripper.RoundTrip(again); err == nil {
							answer.Body.Close() //nolint:errcheck // it is in memory
						}
					})
				}
				<-r.Context().Done()
				return nil, r.Context().Err()
			})
			time.AfterFunc(usual.life+time.Second, func() { link.do(nil) })
			v := w.create(p, "db")
			made := 0
			for _, call := range link.calls() {
				if call == "POST /volume/v3/"+front.Project+"/volumes" {
					made++
				}
			}
			assert.Equal(t, late < time.Minute, made == 1, "after the time for which others wait, a new candidate is created")
			time.Sleep(20 * time.Minute)
			assert.Equal(t, []string{v.ID}, w.idsOf("db", stateSettled))
			assert.Equal(t, 1, w.volumes())
		})
	}
}

// A claimed candidate may be settled at any moment, also by a slow write, and whatever the order of the IDs.
func TestACandidateIsRespectedUntilItIsSettledOrExpired(t *testing.T) {
	lower := map[bool]int{}
	for seed := range uint64(6) {
		inWorld(t, cloud.Config{Latency: 50 * time.Millisecond, Seed: seed}, func(t *testing.T, w *world) {
			server := w.node()
			link := &transport{RoundTripper: w.front.Transport(server)}
			claimer, other := w.onBy(server, link), w.on(w.node())
			for i := range seed { // IDs depend on the number of volumes
				w.create(other, strconv.FormatUint(i, 10))
			}
			link.do(func(_ *http.Request, body string) (*http.Response, error) {
				if strings.Contains(body, stateSettled) {
					time.Sleep(15 * time.Second)
				}
				return nil, nil
			})
			var first, second *providers.Volume
			providertest.AtOnce(func() { first = w.create(claimer, "db") }, func() {
				for range 1000 {
					if len(w.idsOf("db", stateClaimed)) == 1 {
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				// It has listed before the first candidate existed, and creates its own after the second list of the other maker.
				_, err := other.session.Get(t.Context())
				require.NoError(t, err)
				time.Sleep(usual.lag + time.Second)
				id, err := other.createCandidate(t.Context(), providers.Spec{Name: "db", Size: gib})
				require.NoError(t, err)
				lower[id < w.idsOf("db", stateClaimed)[0] || id < w.idsOf("db", stateClaimed)[1]]++
				second = w.create(other, "db")
			})
			assert.Equal(t, first.ID, second.ID)
			assert.Equal(t, []string{first.ID}, w.idsOf("db", stateSettled))
			assert.EqualValues(t, 1+seed, w.volumes())
		})
	}
	assert.Len(t, lower, 2, "both orders of the IDs")
}

// A request to create without an answer is carried out while the next candidate is being settled. A read that is too old to show
// that it is settled does not make the maker delete it.
func TestAnOldReadDoesNotDeleteASettledVolume(t *testing.T) {
	for seed := range uint64(60) {
		inWorld(t, cloud.Config{Seed: seed, Lag: usual.lag, Latency: 20 * time.Millisecond}, func(t *testing.T, w *world) {
			server := w.node()
			link := &transport{RoundTripper: w.front.Transport(server)}
			p, other := w.onBy(server, link), w.on(w.node())
			for i := range seed % 6 { // IDs depend on the number of volumes
				w.create(other, strconv.FormatUint(i, 10))
			}
			asked, late := 0, func() {}
			link.do(func(r *http.Request, body string) (*http.Response, error) {
				switch {
				case strings.Contains(body, stateClaimed):
					if asked++; asked > 1 {
						return nil, nil
					}
					again := r.Clone(context.Background())
					late = func() {
						again.Body = io.NopCloser(strings.NewReader(body))
						if answer, err := link.RoundTripper.RoundTrip(again); assert.NoError(t, err) {
							answer.Body.Close() //nolint:errcheck // it is in memory
						}
					}
					<-r.Context().Done()
					return nil, r.Context().Err()
				case strings.Contains(body, stateSettled):
					late()
				}
				return nil, nil
			})
			hurried, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := p.Create(hurried, providers.Spec{Name: "db", Size: gib})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			first := w.create(p, "db")
			assert.Equal(t, first.ID, w.create(p, "db").ID)
			assert.Equal(t, []string{first.ID}, w.idsOf("db", stateSettled))
		})
	}
}

func TestAnUnlistedCandidateIsDeletedAndNotRepeated(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		link := &transport{RoundTripper: w.front.Transport(server)}
		p, made := w.onBy(server, link), 0
		link.do(func(r *http.Request, body string) (*http.Response, error) {
			switch {
			case strings.Contains(body, stateClaimed):
				made++
			case strings.HasSuffix(r.URL.Path, "/volumes/detail"):
				return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(`{"volumes":[]}`)), Request: r}, nil
			}
			return nil, nil
		})
		_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		sentence(t, err, "lists do not show", "operator")
		assert.Equal(t, 1, made)
		assert.Zero(t, w.volumes())
	})
}

// Cinder cannot delete a volume while it creates it, so a withdrawn candidate exists for long.
func TestAWithdrawnCandidateIsIgnored(t *testing.T) {
	for seed := range uint64(6) {
		create := 3 * time.Minute
		inWorld(t, cloud.Config{Seed: seed, Times: cloud.Times{Create: create}, Lag: usual.lag, Latency: 20 * time.Millisecond}, func(t *testing.T, w *world) {
			a, b, begin := w.on(w.node()), w.on(w.node()), time.Now()
			ids := make([]string, 2)
			providertest.AtOnce(func() { ids[0] = w.create(a, "db").ID }, func() { ids[1] = w.create(b, "db").ID })
			assert.Less(t, time.Since(begin), create+10*time.Second)
			assert.Equal(t, ids[0], ids[1])
			assert.Equal(t, []string{ids[0]}, w.idsOf("db", stateSettled))
			assert.Equal(t, 1, w.volumes())
		})
	}
}

// A maker that ends while it waits for Cinder to create a withdrawn candidate leaves an orphan.
func TestAWithdrawnOrphanIsDeletedWithTheVolume(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Create: 3 * time.Minute}}, func(t *testing.T, w *world) {
		a, b := w.on(w.node()), w.on(w.node())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, p := range []*Provider{a, b} {
			_, err := p.createCandidate(ctx, providers.Spec{Name: "db", Size: gib})
			require.NoError(t, err)
		}
		all, err := a.candidates(t.Context(), "db")
		require.NoError(t, err)
		require.Error(t, a.withdraw(ctx, all.mine...), "it is being created until the time is over")
		require.Len(t, w.idsOf("db", stateWithdrawn), 1)

		v := w.create(b, "db")
		assert.Equal(t, []string{v.ID}, w.idsOf("db", stateSettled))
		assert.Equal(t, 2, w.volumes())
		later := w.on(w.node())
		_, err = later.candidates(t.Context(), "db")
		require.NoError(t, err)
		time.Sleep(usual.patience)
		require.NoError(t, later.Delete(t.Context(), v.ID))
		time.Sleep(time.Minute)
		assert.Zero(t, w.volumes())
	})
}
