package aws

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

// lags are the ages of reads.
func lags(t *testing.T, test func(t *testing.T, cfg cloud.Config)) {
	t.Helper()
	for _, lag := range []time.Duration{0, 5 * time.Second} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("reads %s behind, seed %d", lag, seed), func(t *testing.T) {
				test(t, cloud.Config{Lag: lag, Times: slow, Latency: 100 * time.Millisecond, Seed: seed})
			})
			if lag == 0 {
				break
			}
		}
	}
}

func TestConcurrentCreatesWithDifferentOptionsGetOneVolume(t *testing.T) {
	lags(t, func(t *testing.T, cfg cloud.Config) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			specs := []providers.Spec{
				{Size: gib},
				{Size: gib},
				{Size: 8 * gib, Type: "io2", IOPS: 400},
				{Size: gib, Record: providers.Record{"layout": "data"}},
				{Size: gib, Zone: region + "b"},
			}
			ids := make([]string, len(specs))
			var calls []func()
			for i, spec := range specs {
				spec.Name = "db"
				p := w.on(w.node([]string{"a", "b"}[i%2]))
				calls = append(calls, func() {
					v, err := p.Create(t.Context(), spec)
					if assert.NoError(t, err) {
						ids[i] = v.ID
					}
				})
			}
			providertest.AtOnce(calls...)
			for _, id := range ids {
				assert.Equal(t, ids[0], id)
			}
			assert.Equal(t, 1, w.volumes(), "no orphan")
			assert.Equal(t, []string{ids[0]}, w.named("db"))
		})
	})
}

func TestAFailedCreateIsReportedAndCanBeCorrected(t *testing.T) {
	lags(t, func(t *testing.T, cfg cloud.Config) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			a, b := w.on(w.node("a")), w.on(w.node("b"))
			_, err := a.Create(t.Context(), providers.Spec{Name: "db", Size: gib, KMSKey: "invalid"})
			require.ErrorIs(t, err, providers.ErrInvalid)
			providertest.Sentence(t, err, "KMS key", "vol-")

			v, err := a.Create(t.Context(), providers.Spec{Name: "db", Size: gib, KMSKey: "right"})
			require.NoError(t, err)
			is, _ := w.cloud.Volume(v.ID)
			assert.Equal(t, cloud.Available, is.State)
			assert.Equal(t, []string{v.ID}, w.named("db"))
			time.Sleep(time.Minute)
			found, err := b.Find(t.Context(), "db")
			require.NoError(t, err)
			assert.Equal(t, v.ID, found.ID)

			// The token stays unusable, for every node.
			require.NoError(t, b.Delete(t.Context(), v.ID))
			time.Sleep(time.Minute)
			again, err := w.on(w.node("a")).Create(t.Context(), providers.Spec{Name: "db", Size: 2 * gib})
			require.NoError(t, err)
			assert.Equal(t, []string{again.ID}, w.named("db"))
		})
	})
}

func TestAVolumeThatEC2CannotCreateIsNotListed(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		a, b := w.on(w.node("a")), w.on(w.node("a"))
		providertest.AtOnce(func() {
			_, err := a.Create(t.Context(), providers.Spec{Name: "db", Size: gib, KMSKey: "invalid"})
			assert.Error(t, err)
		}, func() {
			time.Sleep(time.Second) // EC2 calls it creating
			_, err := b.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			assert.Error(t, err, "Find waits for a volume that is being created, which fails")
		})
		c := w.on(w.node("a")) // EC2 calls it error now
		_, err := c.Find(t.Context(), "db")
		providertest.Sentence(t, err, "error", "vol-", "delete-volume")
		require.NotErrorIs(t, err, providers.ErrNotFound, "it could also be a disk that has failed")
		list, err := c.List(t.Context())
		providertest.Sentence(t, err, `"db"`, "error")
		assert.Empty(t, list)
		_, err = c.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		require.Error(t, err)

		time.Sleep(time.Minute)
		w.create(c, "db")
		assert.Len(t, w.named("db"), 1)
	})
}

func TestANameCanBeReusedAfterDelete(t *testing.T) {
	lags(t, func(t *testing.T, cfg cloud.Config) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			first, second := w.node("a"), w.node("b")
			a, b := w.on(first), w.on(second)
			v := w.create(a, "db")
			for _, next := range []*Provider{a, a, b, w.on(first), w.on(second)} {
				require.NoError(t, a.Delete(t.Context(), v.ID))
				if next != a {
					time.Sleep(cfg.Lag) // a node that reads the past finds the old volume, as it may
				}
				fresh, err := next.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
				require.NoError(t, err)
				require.NotEqual(t, v.ID, fresh.ID)
				require.Equal(t, []string{fresh.ID}, w.named("db"))
				v, a = fresh, next
			}
		})
	})
}

func TestANameCanBeReusedAfterForget(t *testing.T) {
	lags(t, func(t *testing.T, cfg cloud.Config) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			first, second := w.node("a"), w.node("b")
			a := w.on(first)
			v := w.create(a, "db")
			kept := []string{}
			for _, next := range []*Provider{a, w.on(second), w.on(first)} {
				require.NoError(t, a.Forget(t.Context(), v.ID))
				kept = append(kept, v.ID)
				if next != a {
					time.Sleep(cfg.Lag)
				}
				fresh, err := next.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
				require.NoError(t, err)
				require.NotContains(t, kept, fresh.ID)
				require.Equal(t, []string{fresh.ID}, w.named("db"))
				v, a = fresh, next
			}
			for _, id := range kept {
				_, there := w.cloud.Volume(id)
				assert.True(t, there, "the disk still exists")
			}
		})
	})
}

// A node that has deleted a volume knows which tokens of its name are used, others do not, and EC2 forgets them after a day.
func TestNodesWithDifferentKnowledgeOfTokensCreateOneVolume(t *testing.T) {
	for _, age := range []time.Duration{time.Minute, 5 * time.Hour, 12 * time.Hour, 25 * time.Hour, 1000 * time.Hour} {
		t.Run(age.String(), func(t *testing.T) {
			inWorld(t, cloud.Config{Lag: 5 * time.Second, Latency: 100 * time.Millisecond, Times: slow}, func(t *testing.T, w *world) {
				a, b := w.on(w.node("a")), w.on(w.node("a"))
				v := w.create(a, "db")
				time.Sleep(age)
				require.NoError(t, a.Delete(t.Context(), v.ID))
				time.Sleep(30 * time.Second)
				providertest.AtOnce(func() { w.create(a, "db") }, func() { w.create(b, "db") })
				assert.Len(t, w.named("db"), 1)
			})
		})
	}
}

func TestAdoptUsesNoTokenOfTheName(t *testing.T) {
	inWorld(t, cloud.Config{Lag: 5 * time.Second, Latency: 100 * time.Millisecond, Times: slow}, func(t *testing.T, w *world) {
		a, b := w.on(w.node("a")), w.on(w.node("a"))
		v := w.create(a, "old")
		require.NoError(t, a.Forget(t.Context(), v.ID))
		_, err := a.Adopt(t.Context(), v.ID, providers.Spec{Name: "new"})
		require.NoError(t, err)
		time.Sleep(30 * time.Second)
		require.NoError(t, a.Delete(t.Context(), v.ID))
		time.Sleep(30 * time.Second)
		providertest.AtOnce(func() { w.create(a, "new") }, func() { w.create(b, "new") })
		assert.Len(t, w.named("new"), 1)
	})
}

func TestAVolumeReadoptedByAnotherNodeIsFound(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		a, b := w.on(w.node("a")), w.on(w.node("a"))
		v := w.create(a, "db")
		require.NoError(t, a.Forget(t.Context(), v.ID))
		time.Sleep(time.Second)
		_, err := b.Adopt(t.Context(), v.ID, providers.Spec{Name: "db"})
		require.NoError(t, err)
		found, err := a.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, v.ID, found.ID)
		assert.Equal(t, v.ID, w.create(a, "db").ID)
		assert.Equal(t, []string{v.ID}, w.named("db"))
	})
}

func TestALostAnswerAndACrashCreateNoSecondVolume(t *testing.T) {
	for _, fault := range []cloud.Fault{cloud.LoseAnswer, cloud.Truncate, cloud.Garbage} {
		lags(t, func(t *testing.T, cfg cloud.Config) {
			inWorld(t, cfg, func(t *testing.T, w *world) {
				node := w.node("a")
				remove := w.cloud.Inject(cloud.Rule{Action: "CreateVolume", Fault: fault})
				_, err := w.on(node).Create(t.Context(), providers.Spec{Name: "db", Size: gib})
				require.ErrorIs(t, err, providers.ErrUnavailable)
				remove()
				first := w.named("db")
				require.Len(t, first, 1)
				for _, spec := range []providers.Spec{{Size: gib}, {Size: 2 * gib}, {Size: gib, Zone: region + "b"}} {
					spec.Name = "db"
					v, err := w.on(node).Create(t.Context(), spec)
					require.NoError(t, err)
					assert.Equal(t, first[0], v.ID)
				}
				assert.Equal(t, 1, w.volumes())
			})
		})
	}
}

func TestEveryCallFindsANewVolumeAtOnce(t *testing.T) {
	for seed := range uint64(8) {
		inWorld(t, cloud.Config{Lag: 5 * time.Second, Times: slow, Seed: seed}, func(t *testing.T, w *world) {
			p := w.on(w.node("a"))
			v := w.create(p, "db")
			_, err := p.Find(t.Context(), "db")
			require.NoError(t, err)
			list, err := p.List(t.Context())
			require.NoError(t, err)
			require.Len(t, list, 1)
			require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
			_, err = p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "s"})
			require.NoError(t, err)

			gone := w.create(p, "gone")
			require.NoError(t, p.Delete(t.Context(), gone.ID), "a delete right after")
			assert.Empty(t, w.named("gone"))
			_, err = p.Find(t.Context(), "gone")
			require.ErrorIs(t, err, providers.ErrNotFound)

			kept := w.create(p, "kept")
			require.NoError(t, p.Forget(t.Context(), kept.ID))
			_, err = p.Adopt(t.Context(), kept.ID, providers.Spec{Name: "back"})
			require.NoError(t, err)
			found, err := p.Find(t.Context(), "back")
			require.NoError(t, err, "a name just given is there")
			assert.Equal(t, kept.ID, found.ID)
			require.NoError(t, p.Forget(t.Context(), kept.ID), "a forget right after")
			assert.Empty(t, w.named("back"))
		})
	}
}

// late delays the answers to one action.
type late struct {
	http.RoundTripper
	action string
	by     time.Duration
}

func (l late) RoundTrip(r *http.Request) (*http.Response, error) {
	action, err := actionOf(r)
	if err != nil {
		return nil, err
	}
	answer, err := l.RoundTripper.RoundTrip(r)
	if action == l.action {
		if err := pause.For(r.Context(), l.by); err != nil {
			return nil, err
		}
	}
	return answer, err
}

// The age of an answer counts from its request, not from its arrival.
func TestALateAnswerProvesNoAbsence(t *testing.T) {
	for seed := range uint64(8) {
		inWorld(t, cloud.Config{Lag: 9 * time.Second, Times: slow, Seed: seed}, func(t *testing.T, w *world) {
			node := w.node("a")
			p := w.onWith(late{w.front.Transport(node), "DescribeVolumes", 15 * time.Second})
			v := w.create(p, "db")
			found, err := p.Find(t.Context(), "db")
			require.NoError(t, err)
			assert.Equal(t, v.ID, found.ID)

			// Nor does another node, which asks for other options, use the next token.
			other := w.onWith(late{w.front.Transport(node), "DescribeVolumes", 15 * time.Second})
			require.NoError(t, p.Delete(t.Context(), v.ID))
			time.Sleep(time.Minute)
			providertest.AtOnce(func() { w.create(p, "db") }, func() {
				_, err := other.Create(t.Context(), providers.Spec{Name: "db", Size: 2 * gib})
				assert.NoError(t, err)
			})
			assert.Len(t, w.named("db"), 1)
		})
	}
}

func TestACancelledCreateIsContinued(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Create: time.Minute}}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := p.Create(ctx, providers.Spec{Name: "db", Size: gib})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		v := w.create(p, "db")
		is, _ := w.cloud.Volume(v.ID)
		assert.Equal(t, cloud.Available, is.State, "returned when it can be attached")
		assert.Equal(t, 1, w.volumes())
	})
}

func TestAVolumeInAnotherZoneIsFoundByName(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a, b := w.on(w.node("a")), w.on(w.node("b"))
		v := w.create(a, "db")
		found, err := b.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, v, found)
		assert.Equal(t, region+"a", found.Zone)
		assert.Equal(t, v.ID, w.create(b, "db").ID, "never a second, empty one")
		err = providertest.Attach(t.Context(), b, v.ID)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "zone", v.ID, "snapshot")
	})
}

func TestAnAmbiguousNameListsItsVolumes(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		v, other := w.create(p, "db"), w.create(p, "other")
		// By hand, or by a copy of the tags.
		twin, err := p.Create(t.Context(), providers.Spec{Name: "twin", Size: gib, Zone: region + "b"})
		require.NoError(t, err)
		require.NoError(t, p.tag(t.Context(), twin.ID, map[string]string{tagName: "db", tagKey: p.keyOf("db")}))

		fresh := w.on(w.node("a"))
		_, err = fresh.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		providertest.Sentence(t, err, v.ID, twin.ID, region+"a", region+"b")
		_, err = fresh.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		list, err := fresh.List(t.Context())
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		providertest.Sentence(t, err, v.ID, twin.ID)
		require.Len(t, list, 1)
		assert.Equal(t, other.ID, list[0].ID)
	})
}
