package hetzner

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// called is what a volume is called at Hetzner.
func (w *world) called(id string) string {
	v, _ := w.cloud.Volume(id)
	return v.Tags["name"]
}

// labels are those that a volume truly has.
func (w *world) labels(id string) map[string]string {
	found := map[string]string{}
	v, _ := w.cloud.Volume(id)
	for key, value := range v.Tags {
		if label, is := strings.CutPrefix(key, "label:"); is {
			found[label] = value
		}
	}
	return found
}

// relabel changes labels as the console does.
func (w *world) relabel(server, id string, change func(map[string]string)) {
	w.t.Helper()
	all := w.labels(id)
	change(all)
	body, err := json.Marshal(map[string]any{"labels": all})
	require.NoError(w.t, err)
	w.must(server, "PUT", "/volumes/"+id, string(body))
}

// foreign makes a volume that is nobody's.
func (w *world) foreign(server, name, more string) string {
	w.t.Helper()
	answer := w.must(server, "POST", "/volumes", `{"name": "`+name+`", "location": "fsn1", "size": 10`+more+`}`)
	return regexp.MustCompile(`"id":([0-9]+),"created"`).FindStringSubmatch(answer)[1]
}

func TestAVolumeShowsItsNameInTheConsole(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		for name, want := range map[string]string{
			"db": `^db-[a-v0-9]{16}$`, "Größe 数据库": `^gr-e-[a-v0-9]{16}$`, strings.Repeat("x", 255): `^x{46}-[a-v0-9]{16}$`,
		} {
			v := w.create(p, name)
			assert.Regexp(t, want, w.called(v.ID))
			assert.Equal(t, w.called(v.ID), w.labels(v.ID)["blockvol.key"])
			assert.Equal(t, "main", w.labels(v.ID)["blockvol.cluster"])
			assert.Equal(t, v.ID, v.Serial)
			assert.Equal(t, "fsn1", v.Zone)
		}
	})
}

func TestClustersOfAnyNameAreListed(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		clusters := []string{"main", "Main", "a,b", "Größe 数据库", strings.Repeat("c", 255), "x)"}
		for _, cluster := range clusters {
			p, err := New(Config{Cluster: cluster, Token: cloudtest.Token(tokenSetting, w.front.Token(server)), Transport: w.front.Transport(server)})
			require.NoError(t, err)
			v := w.create(p, "db")
			list, err := p.List(t.Context())
			require.NoError(t, err)
			require.Len(t, list, 1)
			assert.Equal(t, v.ID, list[0].ID)
		}
	})
}

func TestSizesAreWhatHetznerSells(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		for bytes, want := range map[int64]int64{0: 10, 1: 10, 10 * gib: 10, 10*gib + 1: 11, 10240 * gib: 10240} {
			v, err := p.Create(t.Context(), providers.Spec{Name: fmt.Sprintf("v%d", bytes), Size: bytes})
			require.NoError(t, err)
			assert.Equal(t, want*gib, v.Size)
		}
		_, err := p.Create(t.Context(), providers.Spec{Name: "large", Size: 10240*gib + 1})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "10 to 10240 GiB")
	})
}

func TestAVolumeIsReturnedOnceItIsThere(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.on(w.node("fsn1")), w.on(w.node("fsn1"))
		begin := time.Now()
		var ids [2]string
		providertest.AtOnce(func() { ids[0] = w.create(a, "db").ID }, func() { time.Sleep(time.Second); ids[1] = w.create(b, "db").ID })
		assert.GreaterOrEqual(t, time.Since(begin), slow.Create)
		assert.Less(t, time.Since(begin), slow.Create+3*time.Second)
		assert.Equal(t, ids[0], ids[1])
		assert.Len(t, w.cloud.Volumes(), 1)
	})
}

func TestACreationThatFailsIsTold(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		inner := w.front.Transport(server)
		p := w.onWith(server, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if strings.HasPrefix(r.URL.Path, "/v1/actions/") {
				return httpsim.Response(r, 200, "application/json", `{"action": {"id": 1400000000, "status": "error", "error": {"code": "no_space_left_in_location", "message": "no space"}}}`), nil
			}
			return inner.RoundTrip(r)
		}))
		_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: size})
		require.ErrorIs(t, err, providers.ErrNoSpace)
		providertest.Sentence(t, err, "could not create volume", "no space", "another location")
	})
}

func TestANameThatIsTakenAtHetznerIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		id := w.foreign(server, labels.Name("main", "db", 63), "")
		_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: size})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "volume "+id, "not blockvol's", "volume-id="+id)
		other := w.foreign(server, "other", "")
		_, err = p.Adopt(t.Context(), other, providers.Spec{Name: "db"})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "volume "+id)
		v, err := p.Adopt(t.Context(), id, providers.Spec{Name: "db"})
		require.NoError(t, err)
		assert.Equal(t, id, v.ID)
	})
}

func TestAdoptedVolumesKeepLabelsAndGetAName(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		id := w.foreign(server, "My_Data", `, "labels": {"env": "prod", "blockvol.record.layout": "data"}`)
		v, err := p.Adopt(t.Context(), id, providers.Spec{Name: "db", Record: providers.Record{"uid": "999"}, Tags: map[string]string{"team": "a"}})
		require.NoError(t, err)
		assert.Equal(t, providers.Record{"layout": "data", "uid": "999"}, v.Record)
		assert.Equal(t, labels.Name("main", "db", 63), w.called(id))
		assert.Equal(t, "prod", w.labels(id)["env"])
		assert.Equal(t, "a", w.labels(id)["team"])
		w.since()
		_, err = p.Adopt(t.Context(), id, providers.Spec{Name: "db"})
		require.NoError(t, err)
		for _, call := range w.since() {
			assert.True(t, strings.HasPrefix(call, "GET "), "what is so already is not written: %s", call)
		}
		attached := w.foreign(server, "attached", "")
		w.must(server, "POST", "/volumes/"+attached+"/actions/attach", `{"server": `+server+`}`)
		_, err = p.Adopt(t.Context(), attached, providers.Spec{Name: "mine"})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "attached to server "+server)
	})
}

// Of disks that would become one name at once, one does, be it new or adopted.
func TestOneNameIsGivenOnce(t *testing.T) {
	for _, early := range []time.Duration{0, time.Second, 4 * time.Second} {
		inWorld(t, cloud.Config{Latency: time.Second}, hetzner.Config{}, func(t *testing.T, w *world) {
			server := w.node("fsn1")
			one, two := w.foreign(server, "one", ""), w.foreign(server, "two", "")
			a, b, c := w.on(server), w.on(w.node("fsn1")), w.on(w.node("fsn1"))
			vols, errs := make([]*providers.Volume, 3), make([]error, 3)
			providertest.AtOnce(
				func() { vols[0], errs[0] = a.Adopt(t.Context(), one, providers.Spec{Name: "db"}) },
				func() { vols[1], errs[1] = b.Adopt(t.Context(), two, providers.Spec{Name: "db"}) },
				func() {
					time.Sleep(early)
					vols[2], errs[2] = c.Create(t.Context(), providers.Spec{Name: "db", Size: size})
				},
			)
			id := w.find(a, "db").ID
			require.NoError(t, errs[2], "it is made, or is there")
			for i, err := range errs {
				if err == nil {
					assert.Equal(t, id, vols[i].ID)
				} else {
					require.ErrorIs(t, err, providers.ErrInvalid)
					providertest.Sentence(t, err, "volume "+id)
				}
			}
		})
	}
}

func TestAForgottenVolumeMakesWay(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		p := w.on(a)
		var old []string
		for range 3 {
			v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: size, Record: providers.Record{"layout": "data"}, Tags: map[string]string{"env": "prod"}})
			require.NoError(t, err)
			w.attach(p, v)
			w.detach(p, v, a)
			require.NoError(t, p.Forget(t.Context(), v.ID))
			assert.Equal(t, "db-"+v.ID, w.called(v.ID))
			assert.Equal(t, map[string]string{
				"blockvol.record.layout": "data", "env": "prod", "blockvol.former-cluster": "main", "blockvol.former-name": "db",
			}, w.labels(v.ID))
			assert.False(t, w.protected(v.ID))
			require.ErrorIs(t, providertest.Attach(t.Context(), p, v.ID), providers.ErrNotFound)
			old = append(old, v.ID)
		}
		assert.Len(t, slices.Compact(old), 3)
		back, err := p.Adopt(t.Context(), old[0], providers.Spec{Name: "again"})
		require.NoError(t, err)
		assert.Equal(t, providers.Record{"layout": "data"}, back.Record)
		require.NoError(t, p.Forget(t.Context(), old[0]))
		assert.Equal(t, "again-"+old[0], w.called(old[0]))
	})
}

// Whatever ends the process in the middle, the next call carries on.
func TestForgettingIsCarriedOn(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		p := w.on(a)
		v := w.create(p, "db")
		w.attach(p, v)
		w.detach(p, v, a)
		remove := w.cloud.Inject(cloud.Rule{Action: "PUT /v1/volumes/{id}", Fault: cloud.Fail})
		require.Error(t, p.Forget(t.Context(), v.ID))
		remove()
		assert.Equal(t, v.ID, w.find(p, "db").ID, "it is whole as long as it is ours")
		require.NoError(t, w.on(a).Forget(t.Context(), v.ID))
		assert.False(t, w.protected(v.ID))
		_, err := p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
	})
}

func TestForgottenNames(t *testing.T) {
	for name, want := range map[string]string{
		"db-0123456789abcdef": "db-77", "db": "db-77", "db-77": "db-77", "a-b-c": "a-b-77", "x": "x-77", "My_Data": "My_Data-77",
		strings.Repeat("x", 64): strings.Repeat("x", 60) + "-77",
	} {
		v := cloudVolume(77, name)
		assert.Equal(t, want, forgotten(v), name)
		assert.LessOrEqual(t, len(forgotten(v)), mostName)
	}
}

func TestMarksWaitForWhatIsUnderWay(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
		assert.Equal(t, "ext4", w.find(p, "db").Record["formatted"])
	})
}

// A mark changes its own label and no other's, and an entry that was in pieces leaves none behind.
func TestMarksLeaveOtherLabelsAlone(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		v := w.create(p, "db")
		w.relabel(server, v.ID, func(all map[string]string) { all["mine"] = "x"; all["blockvol.recorder"] = "y" })
		before := w.labels(v.ID)
		require.NoError(t, p.Mark(t.Context(), v.ID, "layout-b", "other"))
		for _, value := range []string{strings.Repeat("é", 100), "plain", "Not plain", "é"} {
			require.NoError(t, p.Mark(t.Context(), v.ID, "layout", value))
			assert.Equal(t, providers.Record{"layout": value, "layout-b": "other"}, w.find(p, "db").Record)
		}
		after := w.labels(v.ID)
		assert.Len(t, after, len(before)+2)
		for key, value := range before {
			assert.Equal(t, value, after[key])
		}
	})
}

func TestAMarkThatIsNotThereIsNoSuccess(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		inner := w.front.Transport(server)
		tries := 0
		p := w.onWith(server, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodPut {
				if tries++; tries < 3 { // another node's labels in the answer
					r.Method = http.MethodGet
				}
			}
			return inner.RoundTrip(r)
		}))
		v := w.create(p, "db")
		require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
		assert.Equal(t, 3, tries)
		assert.Equal(t, "ext4", w.labels(v.ID)["blockvol.record.formatted"])
	})
}

// Labels in which pieces are missing are neither a text nor nothing.
func TestDamagedLabelsAreTold(t *testing.T) {
	long := strings.Repeat("é", 100)
	for name, damage := range map[string]string{"name": "blockvol.name_6_2", "record": "blockvol.record.layout_6_2"} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
				server := w.node("fsn1")
				p := w.on(server)
				v, err := p.Create(t.Context(), providers.Spec{Name: long, Size: size, Record: providers.Record{"layout": long}})
				require.NoError(t, err)
				good := w.create(p, "good")
				require.Contains(t, w.labels(v.ID), damage)
				w.relabel(server, v.ID, func(all map[string]string) { delete(all, damage) })

				_, err = p.Find(t.Context(), long)
				require.NotErrorIs(t, err, providers.ErrNotFound)
				providertest.Sentence(t, err, "volume "+v.ID, "blockvol."+strings.TrimPrefix(strings.TrimSuffix(damage, "_6_2"), "blockvol."))
				list, err := p.List(t.Context())
				providertest.Sentence(t, err, "volume "+v.ID)
				require.Len(t, list, 1)
				assert.Equal(t, good.ID, list[0].ID)
				_, err = p.Create(t.Context(), providers.Spec{Name: long, Size: size})
				require.Error(t, err)
				_, err = p.Adopt(t.Context(), v.ID, providers.Spec{Name: "other"})
				require.ErrorIs(t, err, providers.ErrInvalid)
				assert.Len(t, w.cloud.Volumes(), 2)
			})
		})
	}
}

func TestTwoOfOneNameAreTold(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		v, good := w.create(p, "db"), w.create(p, "good")
		copied := w.foreign(server, "copied", "")
		w.relabel(server, copied, func(all map[string]string) { maps.Copy(all, w.labels(v.ID)) })
		_, err := p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		providertest.Sentence(t, err, v.ID+" in location fsn1", copied, "blockvol.key")
		list, err := p.List(t.Context())
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		require.Len(t, list, 1)
		assert.Equal(t, good.ID, list[0].ID)
		w.relabel(server, copied, func(all map[string]string) { delete(all, "blockvol.key") })
		assert.Equal(t, v.ID, w.find(p, "db").ID)
	})
}

func TestVolumesGrowInUse(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a, b := w.on(w.node("fsn1")), w.on(w.node("fsn1"))
		v := w.create(a, "db")
		w.attach(a, v)
		begin := time.Now()
		providertest.AtOnce(func() {
			now, err := a.Modify(t.Context(), v.ID, providers.Change{Size: 19*gib + 1})
			if assert.NoError(t, err) {
				assert.EqualValues(t, 20*gib, now.Size)
			}
		}, func() {
			now, err := b.Modify(t.Context(), v.ID, providers.Change{Size: 20 * gib})
			if assert.NoError(t, err) {
				assert.EqualValues(t, 20*gib, now.Size)
			}
		})
		assert.Less(t, time.Since(begin), 20*time.Second)
		for _, same := range []int64{0, 20 * gib, 19*gib + 1} {
			_, err := a.Modify(t.Context(), v.ID, providers.Change{Size: same})
			require.NoError(t, err)
		}
		_, err := a.Modify(t.Context(), v.ID, providers.Change{Size: 19 * gib})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "20 GiB", "cannot shrink")
		_, err = a.Modify(t.Context(), v.ID, providers.Change{Size: 10241 * gib})
		require.ErrorIs(t, err, providers.ErrInvalid)
	})
}

func TestAnEnlargementWhoseAnswerWasLostIsRecognised(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		v := w.create(p, "db")
		w.cloud.Inject(cloud.Rule{Action: "POST /v1/volumes/{id}/actions/resize", Fault: cloud.LoseAnswer, Times: 1})
		now, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 20 * gib})
		require.NoError(t, err)
		assert.EqualValues(t, 20*gib, now.Size)
	})
}

func TestChangesOfAVolumeTakeTheirTurn(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		v, other := w.create(p, "db"), w.create(p, "other")
		w.cloud.SetPace(0, 0, cloud.Times{Modify: time.Minute})
		var free, late error
		providertest.AtOnce(func() {
			_, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 20 * gib})
			assert.NoError(t, err)
		}, func() {
			time.Sleep(time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			free = p.Mark(ctx, other.ID, "a", "b")
			late = p.Mark(ctx, v.ID, "a", "b")
		}, func() {
			time.Sleep(2 * time.Second)
			assert.NoError(t, p.Mark(t.Context(), v.ID, "c", "d"))
		})
		require.NoError(t, free, "others do not wait")
		require.ErrorIs(t, late, providers.ErrBusy)
		require.ErrorIs(t, late, context.DeadlineExceeded)
		providertest.Sentence(t, late, "another change of volume "+v.ID)
		assert.Equal(t, providers.Record{"c": "d"}, w.find(p, "db").Record)
	})
}
