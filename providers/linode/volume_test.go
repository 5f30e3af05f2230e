package linode

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	sdk "github.com/linode/linodego"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/linode"
)

func contextWithin(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), time.Minute)
}

// retagged sets the tags of a volume as somebody else does.
func (w *world) retagged(id string, tags ...string) {
	w.t.Helper()
	n, err := strconv.Atoi(id)
	require.NoError(w.t, err)
	p := w.on(w.node())
	_, err = call(w.t.Context(), p, "x", func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.UpdateVolume(ctx, n, sdk.VolumeUpdateOptions{Tags: &tags})
	}, func(*sdk.Volume) bool { return true })
	require.NoError(w.t, err)
}

func (w *world) tags(id string) []string {
	w.t.Helper()
	v, err := w.on(w.node()).get(w.t.Context(), id)
	require.NoError(w.t, err)
	return v.Tags
}

func TestLookupsThatComeTogetherShareAList(t *testing.T) {
	inWorld(t, cloud.Config{Latency: time.Second}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		var lookups []func()
		for i := range 120 {
			name := fmt.Sprint("v", i)
			if i%40 == 0 {
				w.create(p, name)
			}
			lookups = append(lookups, func() {
				v, err := p.Find(t.Context(), name)
				if i%40 != 0 {
					assert.ErrorIs(t, err, providers.ErrNotFound)
				} else if assert.NoError(t, err) {
					assert.Equal(t, name, v.Name)
				}
			})
		}
		w.calls()
		providertest.AtOnce(lookups...)
		assert.LessOrEqual(t, w.calls()[listing], 4, "one goes out at once, the others by fifties")
	})
}

func TestALongListIsWhole(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		const volumes = mostPerPage + 30
		for i := range volumes {
			order, err := p.order(t.Context(), providers.Spec{Name: fmt.Sprintf("v%04d", i), Zone: region}, 10, 0)
			require.NoError(t, err)
			_, err = p.createOnce(t.Context(), order, nil)
			require.NoError(t, err)
		}
		list, err := p.List(t.Context())
		require.NoError(t, err)
		require.Len(t, list, volumes)

		// One of the first page goes between the pages: what slips to the first page is not missed.
		deleted := false
		p = w.on(a, func(cfg *Config) {
			cfg.Transport = httpsim.Before(cfg.Transport, func(r *http.Request) {
				if r.URL.Query().Get("page") == "2" && !deleted {
					deleted = true
					assert.NoError(t, w.on(a).Delete(t.Context(), list[3].ID))
				}
			})
		})
		again, err := p.List(t.Context())
		require.NoError(t, err)
		require.True(t, deleted)
		require.Len(t, again, volumes-1)
		assert.Equal(t, "v0003", list[3].Name)
		for i, v := range again {
			assert.NotEqual(t, "v0003", v.Name)
			if i > 0 {
				assert.Less(t, again[i-1].Name, v.Name)
			}
		}
	})
}

func TestWhatSomebodyDidToTheTagsIsNoticed(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		long := providers.Record{"formatted": strings.Repeat("x y", 40)}
		v, err := p.Create(t.Context(), providers.Spec{Name: "A Name", Record: long})
		require.NoError(t, err)
		w.create(p, "good")
		whole := w.tags(v.ID)
		cut := func(prefix string) []string {
			for i, tag := range whole {
				if strings.HasPrefix(tag, prefix) {
					return append(append([]string{}, whole[:i]...), whole[i+1:]...)
				}
			}
			t.Fatalf("no tag begins with %s", prefix)
			return nil
		}
		for name, c := range map[string]struct {
			tags  []string
			finds bool // it is still found to be the one
		}{
			"a piece of the name is gone":          {cut("bv:name_"), true},
			"the cluster is gone":                  {cut("bv:cluster"), true},
			"a piece of the record is gone":        {cut("bvr:formatted_"), true},
			"there is another name":                {append(append([]string{}, whole...), "bv:name:other"), true},
			"the name is another, and the key not": {append(without(whole, "bv:name_"), "bv:name:other"), true},
		} {
			w.retagged(v.ID, c.tags...)
			_, err := p.Find(t.Context(), "A Name")
			require.NotErrorIs(t, err, providers.ErrNotFound, name)
			providertest.Sentence(t, err, v.ID, "somebody")
			_, err = p.Create(t.Context(), providers.Spec{Name: "A Name"})
			providertest.Sentence(t, err, "somebody")
			list, err := p.List(t.Context())
			require.Len(t, list, 1, name)
			assert.Equal(t, "good", list[0].Name)
			if name != "the cluster is gone" {
				providertest.Sentence(t, err, v.ID, "somebody")
			}
		}
		w.retagged(v.ID, whole...)
		found, err := p.Find(t.Context(), "A Name")
		require.NoError(t, err)
		assert.Equal(t, long, found.Record)
	})
}

func TestTwoVolumesWithOneNameAreBothNamed(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		one, two := w.create(p, "db"), w.create(p, "db2")
		w.create(p, "good")
		w.retagged(two.ID, w.tags(one.ID)...)
		_, err := p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		providertest.Sentence(t, err, one.ID, two.ID)
		list, err := p.List(t.Context())
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		require.Len(t, list, 1)
		_, err = p.Create(t.Context(), providers.Spec{Name: "db"})
		require.ErrorIs(t, err, providers.ErrAmbiguous)
	})
}

func TestTagsOfOthersStay(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Tags: map[string]string{"Team": "DB"}, Record: providers.Record{"layout": "data"}})
		require.NoError(t, err)
		w.retagged(v.ID, append(w.tags(v.ID), "Backed Up")...)
		require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
		assert.Subset(t, w.tags(v.ID), []string{"Team:DB", "Backed Up", "bvr:formatted:ext4", "bvr:layout:data"})
		require.NoError(t, p.Forget(t.Context(), v.ID))
		assert.ElementsMatch(t, []string{"Team:DB", "Backed Up", "bvr:formatted:ext4", "bvr:layout:data", "bvf:cluster:main", "bvf:name:db"}, w.tags(v.ID))
		_, err = p.Adopt(t.Context(), v.ID, providers.Spec{Name: "again", Tags: map[string]string{"team": "db", "new": "tag"}})
		require.NoError(t, err)
		assert.Subset(t, w.tags(v.ID), []string{"Team:DB", "Backed Up", "new:tag", "bvr:formatted:ext4"})
		assert.NotContains(t, w.tags(v.ID), "team:db")
	})
}

// Only what the answer to the change shows has been stored.
func TestAMarkThatLinodeDropsIsAnError(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		v, err := w.on(a).Create(t.Context(), providers.Spec{Name: "db", Record: providers.Record{"layout": "data"}})
		require.NoError(t, err)
		p := w.on(a, func(cfg *Config) {
			way := cfg.Transport
			cfg.Transport = httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/volumes/") {
					return httpsim.Response(r, 200, "application/json", `{"id": `+v.ID+`, "label": "x", "tags": []}`), nil
				}
				return way.RoundTrip(r)
			})
		})
		providertest.Sentence(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"), "not all of the tags")
		providertest.Sentence(t, p.Forget(t.Context(), v.ID), "not all of the tags")
	})
}

func TestAVolumeMadeWithoutItsTagsIsNotLeftBehind(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node(), func(cfg *Config) {
			way := cfg.Transport
			cfg.Transport = httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodPost {
					return httpsim.Response(r, 200, "application/json", `{"id": 7, "label": "db-`+strings.Split(labelOf("db"), "db-")[1]+`", "status": "active", "tags": []}`), nil
				}
				return way.RoundTrip(r)
			})
		})
		_, err := p.Create(t.Context(), providers.Spec{Name: "db"})
		providertest.Sentence(t, err, "without all of its tags")
	})
}

func labelOf(name string) string { return (&Provider{cluster: "main"}).label(name, 0) }

// Two nodes adopt two disks under one name: both look, then both tag.
func TestOneNameIsGivenToOneDisk(t *testing.T) {
	inWorld(t, cloud.Config{Latency: time.Second}, func(t *testing.T, w *world) {
		pa, pb := w.on(w.node()), w.on(w.node())
		one, two := w.create(pa, "one"), w.create(pa, "two")
		require.NoError(t, pa.Forget(t.Context(), one.ID))
		require.NoError(t, pa.Forget(t.Context(), two.ID))
		var errs [2]error
		providertest.AtOnce(
			func() { _, errs[0] = pa.Adopt(t.Context(), one.ID, providers.Spec{Name: "db"}) },
			func() { _, errs[1] = pb.Adopt(t.Context(), two.ID, providers.Spec{Name: "db"}) },
		)
		for _, err := range errs { // both yield here; what matters is that no name has two
			require.ErrorIs(t, err, providers.ErrInvalid)
		}
		_, err := pa.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
		_, err = pa.Adopt(t.Context(), one.ID, providers.Spec{Name: "db"})
		require.NoError(t, err)
	})
}

// Linode allows 200 lists a minute, for the account.
func TestTheAccountsLimitIsWaitedOut(t *testing.T) {
	inWorld(t, cloud.Config{Limits: linode.Limits}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		w.create(p, "db")
		for range 450 {
			_, err := p.Find(t.Context(), "db")
			require.NoError(t, err)
		}
		assert.Zero(t, w.cloud.Throttled()[listing], "the headers say when to stop")
	})
}

func TestOnlyAVolumeThatIsDetachedIsEnlarged(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		v := w.create(p, "db")
		w.attach(p, v)
		w.calls()
		_, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 20 * gib})
		require.ErrorIs(t, err, providers.ErrBusy)
		providertest.Sentence(t, err, "attached to instance "+a, "when it is detached")
		same, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 10 * gib})
		require.NoError(t, err, "it has that size")
		assert.True(t, same.HeldBy(a))
		assert.Zero(t, w.calls()[resizing])

		require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
		cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Detached)
		ask := func(size int64) func() {
			return func() {
				v, err := w.on(a).Modify(t.Context(), v.ID, providers.Change{Size: size})
				if assert.NoError(t, err) {
					assert.Equal(t, size, v.Size)
				}
			}
		}
		providertest.AtOnce(ask(20*gib), ask(20*gib))
		w.cloud.Inject(cloud.Rule{Action: resizing, Fault: cloud.NeverFinish, Times: 1})
		ctx, cancel := contextWithin(t)
		defer cancel()
		_, err = p.Modify(ctx, v.ID, providers.Change{Size: 30 * gib})
		require.ErrorIs(t, err, ctx.Err())
		providertest.Sentence(t, err, "still being resized")
	})
}
