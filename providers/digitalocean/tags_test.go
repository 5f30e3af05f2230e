package digitalocean

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
)

func TestTheLastEntryThatIsWholeHolds(t *testing.T) {
	long := strings.Repeat("long ", 51)
	first := recordTags(providers.Record{"layout": "data"})
	second, gone := change(first, "layout", long)
	assert.Equal(t, first, gone)
	require.Greater(t, len(second), 1, "the value takes several tags")
	both := slices.Concat(first, second)
	third, gone := change(both, "layout", "root")
	assert.ElementsMatch(t, both, gone)
	none, _ := change(third, "layout", "root")
	assert.Empty(t, none, "nothing is to be done for what is so")

	for name, test := range map[string]struct {
		tags []string
		want string
	}{
		"as it was made":            {first, "data"},
		"with a piece of the next":  {slices.Concat(first, second[:1]), "data"},
		"with the other piece":      {slices.Concat(first, second[1:]), "data"},
		"with both":                 {both, long},
		"with a piece of the first": {second, long},
		"with three":                {slices.Concat(both, third), "root"},
		"with the first and third":  {slices.Concat(first, third), "root"},
		"in capitals":               {[]string{strings.ToUpper(third[0])}, "root"},
		"beside what looks like it": {slices.Concat(first, []string{"blockvol-record:9:layout:x", "blockvol-record:layout:x", "blockvol-record:9-zzzz:layout:x"}), "data"},
		"beside another entry":      {slices.Concat(first, recordTags(providers.Record{"uid": "999"})), "data"},
	} {
		assert.Equal(t, test.want, recordOf(test.tags)["layout"], name)
	}
}

func TestOfTwoChangesAtOnceAllSeeTheSame(t *testing.T) {
	first := recordTags(providers.Record{"layout": "data"})
	a, _ := change(first, "layout", "a")
	b, _ := change(first, "layout", "b")
	seen := recordOf(slices.Concat(first, a, b))["layout"]
	assert.Contains(t, []string{"a", "b"}, seen)
	assert.Equal(t, seen, recordOf(slices.Concat(b, a, first))["layout"])
	next, gone := change(slices.Concat(a, b), "layout", "c")
	assert.ElementsMatch(t, slices.Concat(a, b), gone)
	assert.Equal(t, "c", recordOf(slices.Concat(a, b, next))["layout"])
}

func TestTagsAreLegalWhateverTheyHold(t *testing.T) {
	name := strings.Repeat("é", 127) + "1"
	tags := slices.Concat(textTags(textName, name), textTags(textCluster, "Main Cluster"), recordTags(providers.Record{"abcdefghijklmnop": strings.Repeat("\xff", 255)}))
	for _, tag := range tags {
		assert.Regexp(t, `^[a-z0-9_:-]{1,255}$`, tag)
	}
	is := identityOf(tags)
	assert.Equal(t, name, is.name)
	assert.Equal(t, "Main Cluster", is.cluster)
	assert.Equal(t, strings.Repeat("\xff", 255), recordOf(tags)["abcdefghijklmnop"])
}

// Whichever call is the last that a process makes, the entry has the old value or the new one.
func TestAMarkIsNeverHalfDone(t *testing.T) {
	for _, value := range []string{"root", strings.Repeat("long ", 51)} {
		for last := range 8 {
			inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
				node, other := w.node(), w.on(w.node())
				p := w.on(node)
				v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib, Record: providers.Record{"layout": "data", "uid": "0"}})
				require.NoError(t, err)
				w.cloud.Inject(cloud.Rule{Caller: node, Fault: cloud.Fail, Skip: last})
				err = p.Mark(t.Context(), v.ID, "layout", value)
				now := w.find(other, "db").Record
				assert.Equal(t, "0", now["uid"])
				if err == nil {
					assert.Equal(t, value, now["layout"])
				} else {
					assert.Contains(t, []string{"data", value}, now["layout"], "after %d calls", last)
				}
				for _, value := range []string{value, "data"} {
					require.NoError(t, other.Mark(t.Context(), v.ID, "layout", value))
					assert.Equal(t, providers.Record{"layout": value, "uid": "0"}, w.find(other, "db").Record)
				}
				truth, _ := w.cloud.Volume(v.ID)
				turns := map[turn]bool{}
				for _, tag := range trueTags(truth) {
					if key, turn, is := entryOf(tag); is && key == "layout" {
						turns[turn] = true
					}
				}
				assert.Len(t, turns, 1, "what was is gone")
			})
		}
	}
}

func TestNodesThatMarkAtOnceLeaveOneValue(t *testing.T) {
	for ahead := range 10 {
		inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, front.Config{}, func(t *testing.T, w *world) {
			a, b := w.on(w.node()), w.on(w.node())
			v := w.create(a, "db")
			require.NoError(t, a.Mark(t.Context(), v.ID, "layout", "data"))
			providertest.AtOnce(
				func() { assert.NoError(t, a.Mark(t.Context(), v.ID, "layout", "a")) },
				func() {
					time.Sleep(time.Duration(ahead) * 50 * time.Millisecond)
					assert.NoError(t, b.Mark(t.Context(), v.ID, "layout", "b"))
				},
			)
			now := w.find(a, "db").Record["layout"]
			assert.Contains(t, []string{"a", "b"}, now)
			assert.Equal(t, now, w.find(w.on(w.node()), "db").Record["layout"])
		})
	}
}

// A tag that everybody's volumes have costs one call, one that nobody has had yet three.
func TestAMarkThatOthersHaveHadCostsAReadAndATag(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		first, second := w.create(p, "a"), w.create(p, "b")
		w.calls()
		require.NoError(t, p.Mark(t.Context(), first.ID, "formatted", "ext4"))
		assert.Equal(t, map[string]int{getVolume: 1, "POST /v2/tags/{tag}/resources": 2, "POST /v2/tags": 1}, w.calls())
		require.NoError(t, p.Mark(t.Context(), second.ID, "formatted", "ext4"))
		assert.Equal(t, map[string]int{getVolume: 1, "POST /v2/tags/{tag}/resources": 1}, w.calls())
		require.NoError(t, p.Mark(t.Context(), second.ID, "formatted", "ext4"))
		assert.Equal(t, map[string]int{getVolume: 1}, w.calls())
	})
}

func TestATagInOtherCapitalsIsSaid(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		_, _, err := p.api.Tags.Create(t.Context(), tagRequest("Blockvol-Record:0:uid:999"))
		require.NoError(t, err)
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib, Record: providers.Record{"uid": "999"}})
		require.NoError(t, err, "it is given in those capitals")
		assert.Equal(t, providers.Record{"uid": "999"}, v.Record)
		err = p.Mark(t.Context(), w.create(p, "late").ID, "uid", "999")
		require.NotErrorIs(t, err, providers.ErrNotFound)
		providertest.Sentence(t, err, "blockvol-record:0:uid:999", "other capitals", "delete that tag")
	})
}

func TestTheOperatorsTagsStandBesideOurs(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib, Tags: map[string]string{"team": "Storage", "prod": "", "path": "a:"}})
		require.NoError(t, err)
		truth, _ := w.cloud.Volume(v.ID)
		assert.ElementsMatch(t, []string{"blockvol:cluster:main", "blockvol:name:db", "team:Storage", "prod", "path:a:"}, trueTags(truth))
		assert.Empty(t, truth.Tags["filesystem_type"], "blockvol formats by itself")
		assert.Equal(t, fmt.Sprintf("blockvol volume %q of cluster %q", "db", "main"), truth.Tags["description"])
	})
}
