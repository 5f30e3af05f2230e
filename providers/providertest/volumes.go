package providertest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func nodeKnowsItself(w *world) {
	a, err := w.on("a").Node(w.ctx)
	require.NoError(w.t, err)
	assert.NotEmpty(w.t, a.ID)
	again, err := w.on("a").Node(w.ctx)
	require.NoError(w.t, err)
	assert.Equal(w.t, a, again)
	assert.NotEqual(w.t, a.ID, w.id(w.on("b")))
}

func supportsKnownWords(w *world) {
	known := []string{"type", "iops", "throughput", "encrypted", "kms-key", "zone", "snapshot", "tags"}
	p := w.on("a")
	words := p.Supports()
	assert.Subset(w.t, known, words)
	assert.True(w.t, slices.IsSorted(words))
	assert.Equal(w.t, words, slices.Compact(slices.Clone(words)))
	_, takesSnapshots := p.(providers.Snapshotter)
	assert.Equal(w.t, takesSnapshots, slices.Contains(words, "snapshot"))
	// A loop device is a file that anybody may have named so. It is the disk of what makes its disks of files alone.
	if disk := p.Buses(); !slices.Equal(disk, []string{"loop"}) {
		assert.NotEmpty(w.t, disk)
		assert.Subset(w.t, []string{"nvme", "scsi", "virtio"}, disk)
	}
}

func createIsIdempotent(w *world) {
	a, b := w.on("a"), w.on("b")
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size, Record: providers.Record{"fstype": "ext4"}})
	require.NoError(w.t, err)
	require.NotEmpty(w.t, v.ID)
	require.NotEmpty(w.t, v.Serial)
	require.False(w.t, v.Held())
	require.Empty(w.t, v.Snapshot)
	for _, p := range []providers.Provider{a, b, w.on("a")} {
		again, err := p.Create(w.ctx, providers.Spec{Name: "db", Size: 2 * w.Size, Record: providers.Record{"fstype": "xfs"}})
		require.NoError(w.t, err)
		assert.Equal(w.t, v.ID, again.ID)
		assert.Equal(w.t, v.Size, again.Size)
		assert.Equal(w.t, v.Record, again.Record)
		assert.Equal(w.t, v, w.find(p, "db"))
	}
	assert.Equal(w.t, []string{"db"}, w.names(b))
}

func createAtOnce(w *world) {
	const callers = 8
	ids := make([]string, callers)
	var wg sync.WaitGroup
	for i := range callers {
		p := w.on(fmt.Sprintf("n%d", i%4))
		wg.Go(func() {
			v, err := p.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size})
			if assert.NoError(w.t, err) {
				ids[i] = v.ID
			}
		})
	}
	wg.Wait()
	assert.Len(w.t, slices.Compact(ids), 1)
	assert.Equal(w.t, []string{"db"}, w.names(w.on("a")))
}

func findSaysNo(w *world) {
	a := w.on("a")
	w.missing(a, "db")
	assert.Empty(w.t, w.names(a))
	w.create(a, "db")
	w.missing(a, "d")
	w.missing(a, "db2")
	w.missing(a, "")
}

// alike are names that clouds' rules would make one.
var alike = []string{
	"db", "DB", "Db", "d-b", "d_b", "d.b", "d b", "db-", "-db", "db ", " db", "db.", "0", "00",
	"d/b", "../db", "/", ".", "..", "db*", "db%2F", "%64b", `d\b`, `"db"`, "d'b", "d=b,c", "d:b", "db\n", "d\tb", "$db", "db;",
	"dß", "dß\u0301", "é", "e\u0301", "数据库", "数据库2", "😀",
	strings.Repeat("x", 63), strings.Repeat("x", 64), strings.Repeat("x", 254), strings.Repeat("x", 255),
	strings.Repeat("y", 254) + "1", strings.Repeat("y", 254) + "2", strings.Repeat("é", 127) + "1", strings.Repeat("é", 127) + "2",
}

func namesAreExact(w *world) {
	a := w.on("a")
	ids := map[string]string{}
	for _, name := range alike {
		w.missing(a, name)
		v := w.create(a, name)
		require.NotContains(w.t, ids, v.ID, "%q was given the volume of %q", name, ids[v.ID])
		ids[v.ID] = name
	}
	fresh := w.on("b")
	for id, name := range ids {
		require.Equal(w.t, id, w.find(fresh, name).ID)
	}
	want := slices.Clone(alike)
	slices.Sort(want)
	assert.Equal(w.t, want, w.names(fresh))
}

func listIsComplete(w *world) {
	a, b := w.on("a"), w.on("b")
	var want []*providers.Volume
	for i := range 30 {
		p := []providers.Provider{a, b}[i%2]
		w.create(p, fmt.Sprintf("v%02d", i))
	}
	w.attach(a, w.find(a, "v03"))
	for i := range 30 {
		want = append(want, w.find(a, fmt.Sprintf("v%02d", i)))
	}
	got, err := b.List(w.ctx)
	require.NoError(w.t, err)
	assert.Equal(w.t, want, got)
	w.detach(a, w.find(a, "v03"))
}

func sizesRoundUp(w *world) {
	a := w.on("a")
	for i, size := range []int64{w.Size, w.Size + 1, 2*w.Size - 1} {
		v, err := a.Create(w.ctx, providers.Spec{Name: fmt.Sprintf("v%d", i), Size: size})
		require.NoError(w.t, err)
		assert.GreaterOrEqual(w.t, v.Size, size)
		assert.Less(w.t, v.Size, size+w.Size)
		assert.Equal(w.t, v.Size, w.find(a, v.Name).Size)
	}
	v := w.create(a, "exact")
	assert.Equal(w.t, w.Size, v.Size)
}

func invalidIsRefused(w *world) {
	a := w.on("a")
	bad := append([]providers.Spec{
		{Size: w.Size},
		{Name: strings.Repeat("x", 256), Size: w.Size},
		{Name: "negative", Size: -1},
	}, w.Invalid...)
	for i, spec := range bad {
		if i > 2 {
			spec.Name = "invalid"
		}
		_, err := a.Create(w.ctx, spec)
		require.ErrorIs(w.t, err, providers.ErrInvalid, "%+v", spec)
	}
	assert.Empty(w.t, w.names(a))
}

func idsAreUnique(w *world) {
	a := w.on("a")
	ids, serials := map[string]bool{}, map[string]bool{}
	for range 10 {
		v := w.create(a, "db")
		require.False(w.t, ids[v.ID], "%s is used again", v.ID)
		require.False(w.t, serials[v.Serial] && !w.SerialIsName, "%s is used again", v.Serial)
		require.NotEmpty(w.t, v.Serial)
		ids[v.ID], serials[v.Serial] = true, true
		other := w.create(a, "other")
		require.NotEqual(w.t, v.Serial, other.Serial, "two volumes that are there at once")
		require.NoError(w.t, a.Delete(w.ctx, other.ID))
		require.NoError(w.t, a.Delete(w.ctx, v.ID))
	}
}

// hard are entries that clouds' rules for tags would damage.
var hard = providers.Record{
	"layout":           "data",
	"abcdefghijklmnop": strings.Repeat("v", 255),
	"empty":            "",
	"space":            "  x  ",
	"unicode":          "Größe 数据库 😀",
	"long-unicode":     strings.Repeat("é", 127),
	"punctuation":      `a=b,c;d:e/f\g"h'i<j>k&l%m{n}`,
	"lines":            "a\nb\tc",
	"upper":            "MixedCase",
	"json":             `{"a":["b"]}`,
}

func recordsAreWhole(w *world) {
	a, b := w.on("a"), w.on("b")
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size, Record: hard})
	require.NoError(w.t, err)
	assert.Equal(w.t, hard, v.Record)
	assert.Equal(w.t, hard, w.find(b, "db").Record)

	bare := w.create(a, "bare")
	require.NotNil(w.t, bare.Record)
	assert.Empty(w.t, bare.Record)
	for key, value := range hard {
		require.NoError(w.t, b.Mark(w.ctx, bare.ID, key, value))
		require.NoError(w.t, b.Mark(w.ctx, bare.ID, key, value))
		assert.Equal(w.t, value, w.find(w.on("a"), "bare").Record[key])
	}
	require.NoError(w.t, a.Mark(w.ctx, bare.ID, "layout", "root"))
	want := maps.Clone(hard)
	want["layout"] = "root"
	assert.Equal(w.t, want, w.find(b, "bare").Record)
	assert.Equal(w.t, hard, w.find(b, "db").Record)

	// A volume in use can be marked, and keeps its holder.
	v = w.attach(a, v)
	require.NoError(w.t, a.Mark(w.ctx, v.ID, "formatted", "yes"))
	v = w.find(b, "db")
	assert.True(w.t, v.HeldBy(w.id(a)))
	assert.Equal(w.t, "yes", v.Record["formatted"])
	w.detach(a, v)
	assert.Equal(w.t, "yes", w.find(b, "db").Record["formatted"])

	require.NoError(w.t, a.Delete(w.ctx, v.ID))
	require.Error(w.t, a.Mark(w.ctx, v.ID, "layout", "data"))
}

func marksAtOnce(w *world) {
	a := w.on("a")
	v := w.create(a, "db")
	want := providers.Record{}
	var wg sync.WaitGroup
	for i := range 8 {
		key := fmt.Sprintf("key%d", i)
		want[key] = "value"
		wg.Go(func() { assert.NoError(w.t, a.Mark(w.ctx, v.ID, key, "value")) })
	}
	wg.Wait()
	assert.Equal(w.t, want, w.find(a, "db").Record)
}

func answersAreCopies(w *world) {
	a := w.on("a")
	spec := providers.Spec{Name: "db", Size: w.Size, Record: providers.Record{"layout": "data"}}
	v, err := a.Create(w.ctx, spec)
	require.NoError(w.t, err)
	spec.Record["layout"], v.Record["layout"] = "spec", "volume"
	v = w.find(a, "db")
	require.Equal(w.t, "data", v.Record["layout"])
	v.Record["layout"], v.ID, v.Size = "changed", "changed", 0
	list, err := a.List(w.ctx)
	require.NoError(w.t, err)
	require.Equal(w.t, "data", list[0].Record["layout"])
	list[0].Record["layout"] = "changed"
	assert.Equal(w.t, "data", w.find(a, "db").Record["layout"])
}

func deleteIsCareful(w *world) {
	a, b := w.on("a"), w.on("b")
	v := w.create(a, "db")
	other := w.create(a, "other")
	w.attach(a, v)
	require.ErrorIs(w.t, a.Delete(w.ctx, v.ID), providers.ErrHeld)
	require.ErrorIs(w.t, b.Delete(w.ctx, v.ID), providers.ErrHeld)
	require.True(w.t, w.find(b, "db").HeldBy(w.id(a)))
	w.detach(a, v)
	require.NoError(w.t, b.Delete(w.ctx, v.ID))
	w.missing(a, "db")
	require.NoError(w.t, b.Delete(w.ctx, v.ID))
	require.NoError(w.t, w.on("a").Delete(w.ctx, v.ID))
	require.ErrorIs(w.t, Attach(w.ctx, a, v.ID), providers.ErrNotFound)
	assert.Equal(w.t, []string{"other"}, w.names(a))

	fresh, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size, Record: providers.Record{"layout": "data"}})
	require.NoError(w.t, err)
	require.NotEqual(w.t, v.ID, fresh.ID)
	require.NoError(w.t, a.Delete(w.ctx, v.ID), "a late repetition")
	assert.Equal(w.t, fresh, w.find(a, "db"))
	assert.Equal(w.t, other.ID, w.find(a, "other").ID)
}

func forgetAndAdopt(w *world) {
	a, b := w.on("a"), w.on("b")
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size, Record: providers.Record{"layout": "data", "reclaim": "delete"}})
	require.NoError(w.t, err)
	if w.Device != nil {
		w.put(a, "a", v, "precious")
	}
	w.attach(a, v)
	require.ErrorIs(w.t, a.Forget(w.ctx, v.ID), providers.ErrHeld)
	require.ErrorIs(w.t, b.Forget(w.ctx, v.ID), providers.ErrHeld)
	w.detach(a, v)

	require.NoError(w.t, a.Forget(w.ctx, v.ID))
	require.NoError(w.t, a.Forget(w.ctx, v.ID))
	w.missing(b, "db")
	assert.Empty(w.t, w.names(b))
	require.NoError(w.t, b.Delete(w.ctx, v.ID), "a forgotten disk is not ours, so there is nothing to delete")

	fresh := w.create(b, "db")
	require.NotEqual(w.t, v.ID, fresh.ID)
	spec := providers.Spec{Name: "again", Size: 4 * w.Size, Record: providers.Record{"reclaim": "retain", "uid": "999"}}
	for range 2 {
		back, err := b.Adopt(w.ctx, v.ID, spec)
		require.NoError(w.t, err)
		assert.Equal(w.t, v.ID, back.ID)
		assert.Equal(w.t, v.Serial, back.Serial)
		assert.Equal(w.t, "again", back.Name)
		assert.Equal(w.t, v.Size, back.Size)
		assert.Equal(w.t, providers.Record{"layout": "data", "reclaim": "retain", "uid": "999"}, back.Record)
		assert.Equal(w.t, back, w.find(a, "again"))
	}
	assert.Equal(w.t, []string{"again", "db"}, w.names(a))
	if w.Device != nil {
		assert.Equal(w.t, "precious", w.get(b, "b", w.find(b, "again"), v.Size, len("precious")))
	}
}

func orphansAreListed(w *world) {
	a, foreign := w.on("a"), w.Provider(w.t, "a", "other")
	orphans := func(p providers.Provider) (all []providers.Orphan) {
		lister, can := p.(providers.OrphanLister)
		if !can {
			w.t.Skip("the provider lists no orphans")
		}
		all, err := lister.Orphans(w.ctx)
		require.NoError(w.t, err)
		for i := range all {
			all[i].CreatedAt, all[i].Zone = time.Time{}, ""
		}
		return all
	}
	const long = `a name that no cloud's label holds as it is: "Größe" / ` + "0123456789012345678901234567890123456789"
	one, other, kept := w.create(a, "Db 1"), w.create(a, long), w.create(a, "kept")
	w.create(foreign, "theirs")
	assert.Empty(w.t, orphans(a))
	require.NoError(w.t, a.Forget(w.ctx, other.ID))
	require.NoError(w.t, a.Forget(w.ctx, one.ID))
	for _, p := range []providers.Provider{a, w.on("b")} {
		assert.Equal(w.t, []providers.Orphan{
			{ID: one.ID, Name: "Db 1", Kind: providers.OrphanKept, Size: one.Size},
			{ID: other.ID, Name: long, Kind: providers.OrphanKept, Size: other.Size},
		}, orphans(p))
	}
	assert.Empty(w.t, orphans(foreign), "they were another cluster's")
	assert.Equal(w.t, []string{"kept"}, w.names(a))

	// One that is adopted, by whichever cluster, is a volume again; and it is then its last cluster's.
	_, err := foreign.Adopt(w.ctx, one.ID, providers.Spec{Name: "taken"})
	require.NoError(w.t, err)
	_, err = a.Adopt(w.ctx, other.ID, providers.Spec{Name: "back"})
	require.NoError(w.t, err)
	assert.Empty(w.t, orphans(a))
	require.NoError(w.t, foreign.Forget(w.ctx, one.ID))
	assert.Empty(w.t, orphans(a))
	assert.Equal(w.t, []providers.Orphan{{ID: one.ID, Name: "taken", Kind: providers.OrphanKept, Size: one.Size}}, orphans(foreign))
	require.NoError(w.t, a.Delete(w.ctx, kept.ID))
	assert.Empty(w.t, orphans(a))
}

func adoptRefuses(w *world) {
	a, foreign := w.on("a"), w.Provider(w.t, "a", "other")
	spec := providers.Spec{Name: "mine"}
	v, taken := w.create(a, "db"), w.create(a, "taken")
	_, err := a.Adopt(w.ctx, v.ID, spec)
	require.ErrorIs(w.t, err, providers.ErrInvalid, "it has another name")
	_, err = foreign.Adopt(w.ctx, v.ID, spec)
	require.ErrorIs(w.t, err, providers.ErrInvalid, "it has another cluster")

	gone := w.create(a, "gone")
	require.NoError(w.t, a.Delete(w.ctx, gone.ID))
	_, err = a.Adopt(w.ctx, gone.ID, spec)
	require.ErrorIs(w.t, err, providers.ErrNotFound)
	for _, id := range []string{"", "no such id", "../../etc/passwd"} {
		_, err = a.Adopt(w.ctx, id, spec)
		require.Error(w.t, err)
	}
	require.NoError(w.t, a.Forget(w.ctx, v.ID))
	_, err = a.Adopt(w.ctx, v.ID, providers.Spec{Name: "taken"})
	require.ErrorIs(w.t, err, providers.ErrInvalid, "the name belongs to another volume")
	require.Equal(w.t, taken, w.find(a, "taken"))
	back, err := foreign.Adopt(w.ctx, v.ID, spec)
	require.NoError(w.t, err, "a forgotten disk is anyone's")
	assert.Equal(w.t, v.ID, back.ID)
	assert.Equal(w.t, []string{"mine"}, w.names(foreign))
	assert.Equal(w.t, []string{"taken"}, w.names(a))
}

func clustersAreApart(w *world) {
	ours, theirs := w.on("a"), w.Provider(w.t, "b", "other")
	v := w.create(ours, "db")
	w.missing(theirs, "db")
	assert.Empty(w.t, w.names(theirs))
	t := w.create(theirs, "db")
	require.NotEqual(w.t, v.ID, t.ID)
	require.Equal(w.t, t.ID, w.find(theirs, "db").ID)

	require.ErrorIs(w.t, Attach(w.ctx, theirs, v.ID), providers.ErrNotFound)
	require.ErrorIs(w.t, theirs.Forget(w.ctx, v.ID), providers.ErrNotFound)
	require.ErrorIs(w.t, theirs.Mark(w.ctx, v.ID, "layout", "root"), providers.ErrNotFound)
	require.NoError(w.t, theirs.Delete(w.ctx, v.ID))
	w.attach(ours, v)
	require.NoError(w.t, theirs.Detach(w.ctx, v.ID, w.id(ours), true))
	require.True(w.t, w.find(ours, "db").HeldBy(w.id(ours)))
	w.detach(ours, v)
	if s, ok := theirs.(providers.Snapshotter); ok {
		_, err := s.Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "stolen"})
		require.ErrorIs(w.t, err, providers.ErrNotFound)
		snap, err := ours.(providers.Snapshotter).Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "ours"})
		require.NoError(w.t, err)
		_, err = theirs.Create(w.ctx, providers.Spec{Name: "copy", Size: w.Size, Snapshot: snap.ID})
		require.ErrorIs(w.t, err, providers.ErrInvalid)
		_, err = s.FindSnapshot(w.ctx, snap.ID)
		require.ErrorIs(w.t, err, providers.ErrNotFound)
		all, err := s.ListSnapshots(w.ctx)
		require.NoError(w.t, err)
		assert.Empty(w.t, all)
		require.NoError(w.t, s.DeleteSnapshot(w.ctx, snap.ID))
		copied, err := ours.Create(w.ctx, providers.Spec{Name: "copy", Size: w.Size, Snapshot: snap.ID})
		require.NoError(w.t, err)
		require.NoError(w.t, ours.Delete(w.ctx, copied.ID))
	}
	if m, ok := theirs.(providers.Modifier); ok {
		_, err := m.Modify(w.ctx, v.ID, providers.Change{Size: 2 * w.Size})
		require.ErrorIs(w.t, err, providers.ErrNotFound)
	}
	assert.Equal(w.t, v, w.find(ours, "db"))
}
