package digitalocean

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

func TestAnAdoptedVolumeIsFoundUnderTheNameThatItHas(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		id := w.disk("postgres-2019")
		v, err := p.Adopt(t.Context(), id, providers.Spec{Name: "db", Record: providers.Record{"uid": "999"}})
		require.NoError(t, err)
		assert.Equal(t, "postgres-2019", v.Serial)
		assert.Equal(t, int64(2*gib), v.Size)
		w.calls()
		assert.Equal(t, v, w.find(p, "db"))
		assert.Equal(t, map[string]int{listVolumes: 1}, w.calls(), "it is remembered")
		fresh := w.on(w.node())
		assert.Equal(t, v, w.find(fresh, "db"))
		assert.Equal(t, map[string]int{listVolumes: 1, getTag: 1, getVolume: 1}, w.calls(), "by its name in DigitalOcean, and by ours")
		assert.Equal(t, v, w.find(fresh, "db"))
		assert.Equal(t, map[string]int{listVolumes: 1}, w.calls())

		require.NoError(t, p.Delete(t.Context(), id))
		_, err = fresh.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
		w.create(p, "db")
		assert.Equal(t, w.find(p, "db"), w.find(fresh, "db"))
	})
}

// Every prefix of the calls of an Adopt leaves a disk that is nobody's, or wholly adopted.
func TestAnAdoptThatIsCutShortCanBeMadeByAnother(t *testing.T) {
	for last := range 16 {
		inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
			node := w.node()
			p, other := w.on(node), w.on(w.node())
			id := w.disk("old")
			w.cloud.Inject(cloud.Rule{Caller: node, Fault: cloud.Fail, Skip: last})
			spec := providers.Spec{Name: "a name that takes code", Record: providers.Record{"layout": "data"}}
			_, err := p.Adopt(t.Context(), id, spec)
			if now, found := other.Find(t.Context(), spec.Name); found == nil {
				assert.Equal(t, providers.Record{"layout": "data"}, now.Record, "the name comes last")
				return
			}
			require.Error(t, err)
			spec.Name = "another name"
			v, err := other.Adopt(t.Context(), id, spec)
			require.NoError(t, err)
			assert.Equal(t, v, w.find(other, spec.Name))
			_, err = other.List(t.Context())
			require.NoError(t, err)
		})
	}
}

func TestADiskThatIsNotAdoptedStaysAsItIs(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		w.create(p, "taken")
		id := w.disk("old")
		_, err := p.Adopt(t.Context(), id, providers.Spec{Name: "taken", Record: providers.Record{"uid": "0"}})
		require.ErrorIs(t, err, providers.ErrInvalid)
		truth, _ := w.cloud.Volume(id)
		assert.Empty(t, trueTags(truth))
	})
}

func TestADiskOfAnotherRegionIsNotAdopted(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		far := w.cloud.AddInstance(cloud.Instance{Zone: "ams3"}).ID
		v := w.create(w.on(far), "db")
		require.NoError(t, w.on(far).Forget(t.Context(), v.ID))
		p := w.on(w.node())
		_, err := p.Adopt(t.Context(), v.ID, providers.Spec{Name: "db"})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "ams3", region)
		w.create(p, "db")
		assert.Len(t, w.idsOf("db"), 1)
		assert.Equal(t, region, w.find(p, "db").Zone)
	})
}

func TestAForgottenDiskKeepsItsNameAndIsInNobodysWay(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		a, b := w.on(w.node()), w.on(w.node())
		var forgotten []string
		for range 3 {
			v := w.create(a, "db")
			assert.NotContains(t, forgotten, v.Serial)
			assert.Equal(t, v, w.find(b, "db"))
			assert.Equal(t, v, w.find(w.on(w.node()), "db"))
			again, err := b.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			require.NoError(t, err)
			assert.Equal(t, v, again)
			require.NoError(t, b.Forget(t.Context(), v.ID))
			forgotten = append(forgotten, v.Serial)
		}
		_, err := a.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
	})
}

// The first of them is gone when the second is looked for: names differ, and one volume is left.
func TestNodesThatFindDifferentNamesFreeMakeOneVolume(t *testing.T) {
	for ahead := range 12 {
		inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, front.Config{}, func(t *testing.T, w *world) {
			a, b, hand := w.on(w.node()), w.on(w.node()), w.on(w.node())
			old := w.create(hand, "db")
			require.NoError(t, hand.Forget(t.Context(), old.ID))
			made := func(p *Provider) func() {
				return func() {
					if _, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib}); err != nil {
						assert.ErrorIs(t, err, providers.ErrBusy)
					}
				}
			}
			providertest.AtOnce(made(a), func() {
				time.Sleep(time.Duration(ahead) * 50 * time.Millisecond)
				w.byHand(func(r *cloud.Request) error { return r.DeleteVolume(old.ID) })
				made(b)()
			})
			v, err := a.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			require.NoError(t, err)
			assert.Equal(t, []string{v.ID}, w.idsOf("db"))
			assert.Equal(t, v, w.find(b, "db"))
		})
	}
}

func TestANameIsNotGivenTwiceByCreateAndAdoptAtOnce(t *testing.T) {
	for ahead := range 30 {
		inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, front.Config{}, func(t *testing.T, w *world) {
			a, b := w.on(w.node()), w.on(w.node())
			log, warned := logtest.NewNullLogger()
			a.cfg.Log = log
			id := w.disk("old")
			var created *providers.Volume
			var failed error
			providertest.AtOnce(func() {
				time.Sleep(time.Duration(ahead) * 40 * time.Millisecond)
				created, failed = a.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			}, func() {
				_, err := b.Adopt(t.Context(), id, providers.Spec{Name: "db"})
				if err != nil {
					assert.ErrorIs(t, err, providers.ErrInvalid)
				}
			})
			bearers := w.idsOf("db")
			assert.LessOrEqual(t, len(bearers), 1)
			if failed == nil {
				require.Equal(t, []string{created.ID}, bearers)
				assert.Equal(t, created, w.find(b, "db"))
			} else {
				require.ErrorIs(t, failed, providers.ErrBusy)
			}
			if len(warned.AllEntries()) > 0 {
				assert.Equal(t, logrus.WarnLevel, warned.LastEntry().Level)
				assert.Len(t, w.cloud.Volumes(), 2, "nothing is deleted but by Delete")
			}
		})
	}
}

func TestDisksOfOneNameAreNamed(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		w.create(p, "fine")
		var ids []string
		for _, name := range []string{"one", "two"} {
			id := w.disk(name)
			require.NoError(t, p.tag(t.Context(), id, append(textTags(textCluster, "main"), textTags(textName, "db")...)))
			ids = append(ids, id)
		}
		_, err := p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		providertest.Sentence(t, err, ids[0], ids[1], "blockvol:cluster")
		list, err := p.List(t.Context())
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		require.Len(t, list, 1)
		assert.Equal(t, "fine", list[0].Name)
	})
}

func TestAVolumeWhoseNameCannotBeReadHidesNoOther(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		w.create(p, "fine")
		id := w.disk("half")
		name := textTags(textName, string(slices.Repeat([]byte("é"), 127)))
		require.Len(t, name, 2)
		require.NoError(t, p.tag(t.Context(), id, append(textTags(textCluster, "main"), name[0])))
		list, err := p.List(t.Context())
		providertest.Sentence(t, err, id, "cannot be read")
		require.Len(t, list, 1)
		require.NoError(t, p.Delete(t.Context(), "none"))
		require.NoError(t, p.Delete(t.Context(), id), "it is nobody's")
		_, there := w.cloud.Volume(id)
		assert.True(t, there)
	})
}

// A token without the scope sees no tags. That must not look as if there were no volumes.
func TestATokenThatSeesNoTagsMakesNoSecondVolume(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		blind := w.node()
		v := w.create(w.on(w.node()), "db")
		p := w.on(blind)
		w.front.Restrict(w.front.Token(blind), "block_storage:read", "block_storage:create", "block_storage:delete", "tag:create", "tag:delete")
		_, err := p.Find(t.Context(), "db")
		require.NotErrorIs(t, err, providers.ErrNotFound)
		providertest.Sentence(t, err, v.ID, "tag:read", "volume-id="+v.ID)
		_, err = p.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		require.ErrorContains(t, err, "tag:read")
		for _, name := range []string{"db", "other"} { // together, by one read of all
			a, err := p.named(t.Context(), []string{"other", "db"})
			require.NoError(t, err)
			assert.Equal(t, name == "db", len(a[name]) == 1 && hidden(a[name][0]) != nil)
			assert.Equal(t, name != "db", len(a[name]) == 0)
		}
		_, err = p.List(t.Context())
		require.ErrorContains(t, err, "tag:read")
		require.ErrorContains(t, p.Delete(t.Context(), v.ID), "tag:read")
		require.ErrorContains(t, p.Forget(t.Context(), v.ID), "tag:read")
		require.ErrorContains(t, p.Mark(t.Context(), v.ID, "uid", "1"), "tag:read")
		_, err = p.Adopt(t.Context(), v.ID, providers.Spec{Name: "db"})
		require.ErrorContains(t, err, "tag:read")
		_, err = p.Create(t.Context(), providers.Spec{Name: "new", Size: gib})
		require.ErrorContains(t, err, "tag:read")
		assert.Equal(t, []string{v.ID}, w.idsOf("db"))
	})
}

// What the answer to its making shows of the tags, no reference promises.
func TestAVolumeIsOursByWhatReadsShow(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		there := w.front.Transport(w.node())
		p := w.of(w.node(), "main", httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			answer, err := there.RoundTrip(r)
			if err == nil && r.Method == http.MethodPost {
				httpsim.ReplaceBody(answer, `"tags":["blockvol:cluster:main","blockvol:name:db"]`, `"tags":null`)
			}
			return answer, err
		}))
		assert.Equal(t, w.create(p, "db"), w.find(p, "db"))
	})
}

func TestAVolumeFromASnapshotIsEnlargedByWhoeverComesNext(t *testing.T) {
	for last := range 10 {
		inWorld(t, cloud.Config{Times: slow}, front.Config{}, func(t *testing.T, w *world) {
			node := w.node()
			p, other := w.on(node), w.on(w.node())
			source := w.create(p, "source")
			snap, err := p.Snapshot(t.Context(), source.ID, providers.SnapshotSpec{Description: "nightly"})
			require.NoError(t, err)
			time.Sleep(time.Minute)
			w.cloud.Inject(cloud.Rule{Caller: node, Fault: cloud.Fail, Skip: last})
			spec := providers.Spec{Name: "copy", Size: 3 * gib, Snapshot: snap.ID}
			_, _ = p.Create(t.Context(), spec)
			v, err := other.Create(t.Context(), spec)
			require.NoError(t, err)
			assert.Equal(t, int64(3*gib), v.Size, "after %d calls", last)
			assert.Equal(t, snap.ID, v.Snapshot)
			assert.Len(t, w.idsOf("copy"), 1)
		})
	}
}

func TestQuestionsAtOnceShareCalls(t *testing.T) {
	inWorld(t, cloud.Config{Latency: time.Second}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		var calls []func()
		for i := range 20 {
			v := w.create(p, fmt.Sprint("v", i))
			calls = append(calls, func() {
				got, err := p.Find(t.Context(), v.Name)
				if assert.NoError(t, err) {
					assert.Equal(t, v.ID, got.ID)
				}
			})
		}
		w.calls()
		providertest.AtOnce(calls...)
		assert.LessOrEqual(t, w.calls()[listVolumes], 2)
	})
}

// fill makes volumes of this cluster, and returns the id of the first.
func (w *world) fill(volumes int) (first string) {
	w.byHand(func(r *cloud.Request) error {
		for i := range volumes {
			name := fmt.Sprintf("v%03d", i)
			tags := map[string]string{"name": name, "tag:blockvol:cluster:main": "", "tag:blockvol:name:" + name: ""}
			v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: gib}, Tags: tags})
			if err != nil {
				return err
			}
			first = cmp.Or(first, v.ID)
		}
		return nil
	})
	return first
}

func TestACreateCostsTheSameHoweverManyVolumesThereAre(t *testing.T) {
	for _, others := range []int{0, 450} {
		inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
			w.fill(others)
			for _, name := range []string{"db", "A name_that.takes code", strings.Repeat("long", 60)} {
				p := w.on(w.node())
				v := w.create(p, name)
				assert.Equal(t, map[string]int{listVolumes: 1, getTag: 2, createVolume: 1}, w.calls())
				assert.Equal(t, v, w.find(p, name), "it is as a read shows it")
				assert.Equal(t, []string{v.ID}, w.idsOf(name))
				w.calls()
			}
		})
	}
}

// Volumes of other clusters and regions, and disks that were forgotten, have the tag of the name too.
func TestTheTagOfANameIsNotTheNameOfTheCluster(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		forgotten := w.create(p, "db")
		require.NoError(t, p.Forget(t.Context(), forgotten.ID))
		for range 2 { // one volume has the tag, then several
			_, err := w.on(w.node()).Find(t.Context(), "db")
			require.ErrorIs(t, err, providers.ErrNotFound)
			far := w.on(w.cloud.AddInstance(cloud.Instance{Zone: "ams3"}).ID)
			w.create(far, "db")
		}
		w.create(w.on(w.cloud.AddInstance(cloud.Instance{Zone: "ams3"}).ID), "far")
		_, err := w.on(w.node()).Find(t.Context(), "far")
		require.ErrorIs(t, err, providers.ErrNotFound)
		node := w.node()
		other := w.create(w.of(node, "other", w.front.Transport(node)), "db")
		v := w.create(p, "db")
		assert.NotContains(t, []string{forgotten.ID, other.ID}, v.ID)
		assert.Equal(t, v, w.find(w.on(w.node()), "db"))
	})
}

// What the tag tells is not taken for more than it may be: of an answer that may be old, the region's volumes decide.
func TestATagThatDoesNotTellOfTheNewVolumeLeavesItToTheList(t *testing.T) {
	for name, says := range map[string]string{
		"none": `"volumes":{"count":0}`, "another": `"volumes":{"count":1,"last_tagged_uri":"https://api.digitalocean.com/v2/volumes/506f78a4-e098-11e5-ad9f-000f53306ae1"}`,
		"nothing": `"volumes":null`,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
				node := w.node()
				there := w.front.Transport(node)
				truth := "" // of the answer that is to be replaced
				p := w.of(node, "main", httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
					answer, err := there.RoundTrip(r)
					if err == nil && truth != "" && strings.HasPrefix(r.URL.Path, "/v2/tags/") {
						httpsim.ReplaceBody(answer, truth, says)
						truth = ""
					}
					return answer, err
				}))
				_, err := p.Find(t.Context(), "db")
				require.ErrorIs(t, err, providers.ErrNotFound)
				adopted, err := w.on(w.node()).Adopt(t.Context(), w.disk("old"), providers.Spec{Name: "db"})
				require.NoError(t, err)
				time.Sleep(time.Second) // so that it is the oldest
				truth = fmt.Sprintf(`"volumes":{"count":2,"last_tagged_uri":"https://api.digitalocean.com/v2/volumes/%s"}`, adopted.ID)
				assert.Equal(t, adopted.ID, w.create(p, "db").ID)
				assert.Empty(t, truth)
				assert.Equal(t, []string{adopted.ID}, w.idsOf("db"))
			})
		})
	}
}

// A volume that no request for the tag finds would be denied, where its name in DigitalOcean is not the first.
func TestAVolumeOfASecondNameIsNotMadeWithATagInOtherCapitals(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		_, _, err := p.api.Tags.Create(t.Context(), tagRequest("blockvol:name:DB"))
		require.NoError(t, err)
		v := w.create(p, "db")
		assert.Equal(t, v, w.find(w.on(w.node()), "db"))
		require.NoError(t, p.Forget(t.Context(), v.ID))
		_, err = p.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "blockvol:name:db", "capitals", "delete that tag")
		assert.Empty(t, w.idsOf("db"))
	})
}

func TestAListOfManyIsReadInPages(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		first := w.fill(450)
		list, err := p.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, list, 450)
		assert.Equal(t, map[string]int{listVolumes: 3}, w.calls())

		// What is deleted while the pages are read moves the others.
		pages := 0
		moving := w.of(w.node(), "main", httpsim.Before(w.front.Transport(w.node()), func(r *http.Request) {
			if r.URL.Query().Get("page") == "2" {
				if pages++; pages == 1 {
					require.NoError(t, p.Delete(t.Context(), first))
				}
			}
		}))
		list, err = moving.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, list, 449)
		assert.Equal(t, 2, pages)
	})
}

// Pages are as long as DigitalOcean makes them, whatever was asked for.
func TestAListIsReadToItsEnd(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		for i := range 9 {
			w.create(p, fmt.Sprint("v", i))
		}
		p = w.of(w.node(), "main", httpsim.Before(w.front.Transport(w.node()), func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "per_page=200", "per_page=4", 1)
		}))
		list, err := p.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, list, 9)
	})
}

func TestSnapshotsOfOthersAreSources(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		id := w.disk("by-hand")
		var snap string
		w.byHand(func(r *cloud.Request) error {
			s, err := r.CreateSnapshot(id, "", map[string]string{"name": "backup", "region": region})
			snap = s.ID
			return err
		})
		v, err := p.Create(t.Context(), providers.Spec{Name: "copy", Snapshot: snap})
		require.NoError(t, err)
		assert.Equal(t, int64(2*gib), v.Size)
		assert.Equal(t, snap, v.Snapshot)
		far := w.on(w.cloud.AddInstance(cloud.Instance{Zone: "ams3"}).ID)
		_, err = far.Create(t.Context(), providers.Spec{Name: "copy", Snapshot: snap})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, region, "ams3")
		require.NoError(t, p.DeleteSnapshot(t.Context(), snap))
		assert.Len(t, w.cloud.Snapshots(), 1, "one that is nobody's stays")
	})
}

func TestAnEnlargementThatDigitalOceanGivesUpIsSaid(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v := w.create(p, "db")
		answers := w.front.Transport(w.node())
		p = w.of(w.node(), "main", httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			answer, err := answers.RoundTrip(r)
			if err == nil && r.Method == http.MethodGet && r.URL.Path != "/v2/volumes/"+v.ID {
				httpsim.ReplaceBody(answer, `"in-progress"`, `"errored"`)
			}
			return answer, err
		}))
		_, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 2 * gib})
		providertest.Sentence(t, err, v.ID, `"errored"`)
	})
}

func TestACreateDoesNotRepeatTheLookBeforeIt(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		absent := func(name string) {
			_, err := p.Find(t.Context(), name)
			require.ErrorIs(t, err, providers.ErrNotFound)
			w.calls()
		}
		absent("db")
		v := w.create(p, "db")
		assert.Equal(t, map[string]int{createVolume: 1, getTag: 1}, w.calls())
		time.Sleep(justAsked)
		absent("other")
		time.Sleep(justAsked)
		w.create(p, "other")
		assert.Equal(t, map[string]int{createVolume: 1, listVolumes: 1, getTag: 2}, w.calls(), "the look is too long ago")

		// What has come to the name since is found all the same.
		absent("here")
		_, err := p.Adopt(t.Context(), w.disk("by-hand"), providers.Spec{Name: "here"})
		require.NoError(t, err)
		w.calls()
		here := w.create(p, "here")
		assert.Zero(t, w.calls()[createVolume])
		absent("elsewhere")
		adopted, err := w.on(w.node()).Adopt(t.Context(), w.disk("by-hand-too"), providers.Spec{Name: "elsewhere"})
		require.NoError(t, err)
		assert.Equal(t, adopted.ID, w.create(p, "elsewhere").ID)
		for name, id := range map[string]string{"db": v.ID, "here": here.ID, "elsewhere": adopted.ID} {
			assert.Equal(t, []string{id}, w.idsOf(name))
		}
	})
}
