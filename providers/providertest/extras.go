package providertest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func (w *world) snapshotter(node string) (providers.Provider, providers.Snapshotter) {
	p := w.on(node)
	s, ok := p.(providers.Snapshotter)
	if !ok {
		w.t.Skip("the provider takes no snapshots")
	}
	return p, s
}

// complete returns a snapshot once it is complete.
func (w *world) complete(s providers.Snapshotter, snap *providers.Snapshot) *providers.Snapshot {
	for {
		now, err := s.FindSnapshot(w.ctx, snap.ID)
		require.NoError(w.t, err)
		require.NotEqual(w.t, providers.SnapshotFailed, now.State)
		if now.State == providers.SnapshotComplete {
			return now
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-w.ctx.Done():
			require.NoError(w.t, w.ctx.Err(), "snapshot %s is not complete", now.ID)
		}
	}
}

func snapshotIsACopy(w *world) {
	a, s := w.snapshotter("a")
	b, sb := w.snapshotter("b")
	none, err := s.ListSnapshots(w.ctx)
	require.NoError(w.t, err)
	assert.Empty(w.t, none)
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size, Record: providers.Record{"layout": "data", "formatted": "ext4", "reclaim": "delete"}})
	require.NoError(w.t, err)
	if w.Device != nil {
		w.put(a, "a", v, "before")
	}
	snap, err := s.Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "nightly", Record: providers.Record{"reason": "by hand", "layout": "root"}})
	require.NoError(w.t, err)
	assert.NotEmpty(w.t, snap.ID)
	assert.Equal(w.t, v.ID, snap.Volume)
	assert.Equal(w.t, "db", snap.Name)
	assert.Equal(w.t, v.Size, snap.Size)
	assert.Equal(w.t, providers.Record{"layout": "root", "formatted": "ext4", "reclaim": "delete", "reason": "by hand"}, snap.Record)
	assert.Equal(w.t, "data", w.find(a, "db").Record["layout"], "the volume's record is its own")
	snap = w.complete(s, snap)
	again, err := sb.Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "nightly"})
	require.NoError(w.t, err)
	assert.Equal(w.t, snap, again)
	other, err := s.Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "weekly"})
	require.NoError(w.t, err)
	assert.NotEqual(w.t, snap.ID, other.ID)
	other = w.complete(sb, other)
	all, err := sb.ListSnapshots(w.ctx)
	require.NoError(w.t, err)
	assert.Equal(w.t, []*providers.Snapshot{snap, other}, all)
	assert.Equal(w.t, []string{"db"}, w.names(a), "a snapshot is no volume")

	require.NoError(w.t, a.Mark(w.ctx, v.ID, "later", "yes"))
	if w.Device != nil {
		w.put(a, "a", v, "after!")
	}
	spec := providers.Spec{Name: "copy", Snapshot: snap.ID, Record: providers.Record{"layout": "data", "reclaim": "retain", "uid": "999"}}
	c, err := b.Create(w.ctx, spec)
	require.NoError(w.t, err)
	assert.NotEqual(w.t, v.ID, c.ID)
	assert.NotEqual(w.t, v.Serial, c.Serial)
	assert.Equal(w.t, snap.ID, c.Snapshot)
	assert.Equal(w.t, v.Size, c.Size)
	assert.Equal(w.t, providers.Record{"layout": "data", "formatted": "ext4", "reclaim": "retain", "reason": "by hand", "uid": "999"}, c.Record)
	assert.Equal(w.t, c, w.find(a, "copy"))
	spec.Name, spec.Size = "larger", 3*w.Size
	larger, err := b.Create(w.ctx, spec)
	require.NoError(w.t, err)
	assert.Equal(w.t, 3*w.Size, larger.Size)

	// The copies live on without what they were made from.
	require.NoError(w.t, a.Delete(w.ctx, v.ID))
	for range 2 {
		require.NoError(w.t, s.DeleteSnapshot(w.ctx, snap.ID))
	}
	_, err = s.FindSnapshot(w.ctx, snap.ID)
	require.ErrorIs(w.t, err, providers.ErrNotFound)
	all, err = s.ListSnapshots(w.ctx)
	require.NoError(w.t, err)
	if assert.Len(w.t, all, 1) {
		assert.Equal(w.t, other.ID, all[0].ID)
	}
	assert.Equal(w.t, snap.ID, w.find(a, "copy").Snapshot)
	if w.Device != nil {
		assert.Equal(w.t, "before", w.get(b, "b", c, v.Size, 6))
		assert.Equal(w.t, "before", w.get(a, "a", larger, v.Size, 6))
	}
	for _, id := range []string{snap.ID, "no such snapshot"} {
		_, err = a.Create(w.ctx, providers.Spec{Name: "none", Size: w.Size, Snapshot: id})
		require.Error(w.t, err)
	}
	large := w.create(a, "large")
	if m, ok := a.(providers.Modifier); ok {
		_, err = m.Modify(w.ctx, large.ID, providers.Change{Size: 2 * w.Size})
		require.NoError(w.t, err)
		snap, err = s.Snapshot(w.ctx, large.ID, providers.SnapshotSpec{Description: "large"})
		require.NoError(w.t, err)
		_, err = a.Create(w.ctx, providers.Spec{Name: "none", Size: w.Size, Snapshot: snap.ID})
		require.ErrorIs(w.t, err, providers.ErrInvalid)
	}
	w.missing(a, "none")
	_, err = s.Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "late"})
	require.ErrorIs(w.t, err, providers.ErrNotFound)
}

func snapshotInUse(w *world) {
	a, s := w.snapshotter("a")
	v := w.attach(a, w.create(a, "db"))
	snap, err := s.Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "running"})
	if w.SnapshotNeedsDetached {
		require.ErrorIs(w.t, err, providers.ErrHeld)
		w.detach(a, v)
		snap, err = s.Snapshot(w.ctx, v.ID, providers.SnapshotSpec{Description: "running"})
		require.NoError(w.t, err)
		w.attach(a, v)
	}
	require.NoError(w.t, err)
	c, err := a.Create(w.ctx, providers.Spec{Name: "copy", Snapshot: snap.ID})
	require.NoError(w.t, err)
	assert.False(w.t, c.Held(), "the holder does not go with the copy")
	assert.True(w.t, w.find(a, "db").HeldBy(w.id(a)))
	w.detach(a, v)
}

func (w *world) modifier(node string) (providers.Provider, providers.Modifier) {
	p := w.on(node)
	m, ok := p.(providers.Modifier)
	if !ok {
		w.t.Skip("the provider changes no volumes")
	}
	return p, m
}

// modifyEnlarges changes each volume once, since clouds may want hours between two changes.
func modifyEnlarges(w *world) {
	a, m := w.modifier("a")
	_, mb := w.modifier("b")
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: 2 * w.Size, Record: providers.Record{"layout": "data"}})
	require.NoError(w.t, err)
	for _, size := range []int64{w.Size, -1} {
		_, err = m.Modify(w.ctx, v.ID, providers.Change{Size: size})
		require.ErrorIs(w.t, err, providers.ErrInvalid)
	}
	for _, same := range []providers.Change{{}, {Size: v.Size}} {
		got, err := m.Modify(w.ctx, v.ID, same)
		require.NoError(w.t, err)
		assert.Equal(w.t, v, got)
	}
	assert.Equal(w.t, v, w.find(a, "db"))
	want := *v
	want.Size = 3 * w.Size
	for _, m := range []providers.Modifier{m, m, mb} {
		got, err := m.Modify(w.ctx, v.ID, providers.Change{Size: 3 * w.Size})
		require.NoError(w.t, err)
		assert.Equal(w.t, &want, got)
		assert.Equal(w.t, &want, w.find(w.on("b"), "db"))
	}
	_, err = m.Modify(w.ctx, v.ID, providers.Change{Size: 2 * w.Size})
	require.ErrorIs(w.t, err, providers.ErrInvalid)
	switch more, err := m.Modify(w.ctx, v.ID, providers.Change{Size: 4 * w.Size}); {
	case err != nil:
		require.ErrorIs(w.t, err, providers.ErrBusy)
		assert.Equal(w.t, &want, w.find(a, "db"))
	default:
		assert.Equal(w.t, 4*w.Size, more.Size)
	}
	odd := w.create(a, "odd")
	odd, err = m.Modify(w.ctx, odd.ID, providers.Change{Size: w.Size + 1})
	require.NoError(w.t, err)
	assert.Greater(w.t, odd.Size, w.Size)
	assert.LessOrEqual(w.t, odd.Size, 2*w.Size)
	require.NoError(w.t, a.Delete(w.ctx, v.ID))
	_, err = m.Modify(w.ctx, v.ID, providers.Change{Size: 4 * w.Size})
	require.ErrorIs(w.t, err, providers.ErrNotFound)
}

func modifyChangesTheKind(w *world) {
	a, m := w.modifier("a")
	plain := w.create(a, "plain")
	bad := append([]providers.Change{{IOPS: -1}, {Throughput: -1}, {Type: "no such type"}}, w.InvalidChanges...)
	words := a.Supports()
	for word, change := range map[string]providers.Change{
		"type": {Type: "any"}, "iops": {IOPS: 3000}, "throughput": {Throughput: 125},
	} {
		if !slices.Contains(words, word) {
			bad = append(bad, change)
		}
	}
	for _, change := range bad {
		_, err := m.Modify(w.ctx, plain.ID, change)
		require.ErrorIs(w.t, err, providers.ErrInvalid, "%+v", change)
		change.Size = 2 * w.Size
		_, err = m.Modify(w.ctx, plain.ID, change)
		require.ErrorIs(w.t, err, providers.ErrInvalid, "%+v", change)
	}
	assert.Equal(w.t, plain, w.find(a, "plain"), "nothing of a change that is refused is done")

	for i, change := range w.Changes {
		v := w.create(a, fmt.Sprintf("v%d", i))
		if i%2 == 1 {
			v = w.attach(a, v)
		}
		for range 2 {
			got, err := m.Modify(w.ctx, v.ID, change)
			require.NoError(w.t, err, "%+v", change)
			assert.Equal(w.t, got, w.find(w.on("b"), v.Name))
			assert.Equal(w.t, cmp.Or(change.Size, v.Size), got.Size)
			assert.Equal(w.t, v.Record, got.Record)
			assert.Equal(w.t, v.Attachment, got.Attachment)
			for word, value := range map[string]string{
				"type": change.Type, "iops": strconv.Itoa(change.IOPS), "throughput": strconv.Itoa(change.Throughput),
			} {
				if value != "" && value != "0" {
					assert.Equal(w.t, value, got.Details[word], "%s after %+v", word, change)
				}
			}
		}
		if v.Held() {
			w.detach(a, v)
		}
	}
}

func modifyReachesTheDevice(w *world) {
	a, m := w.modifier("a")
	if w.Device == nil {
		w.t.Skip("the harness shows no devices")
	}
	v := w.create(a, "db")
	w.put(a, "a", v, "bytes")
	v = w.attach(a, v)
	_, err := m.Modify(w.ctx, v.ID, providers.Change{Size: 2 * w.Size})
	if w.ModifyNeedsDetached {
		require.ErrorIs(w.t, err, providers.ErrBusy)
		require.Equal(w.t, w.Size, w.find(a, "db").Size)
		w.detach(a, v)
		_, err = m.Modify(w.ctx, v.ID, providers.Change{Size: 2 * w.Size})
		w.attach(a, v)
	}
	require.NoError(w.t, err)
	v = w.find(a, "db")
	require.True(w.t, v.HeldBy(w.id(a)))
	w.detach(a, v)
	assert.Equal(w.t, "bytes", w.get(a, "a", v, w.Size, 5))
	w.put(a, "a", v, "grown") // at the new end
	assert.Equal(w.t, "grown", w.get(a, "a", v, 2*w.Size, 5))
}

func tagsAreTold(w *world) {
	a := w.on("a")
	reader, can := a.(providers.TagReader)
	if _, copies := a.(providers.Snapshotter); !can || !copies {
		w.t.Skip("the provider copies no volumes")
	}
	given := map[string]string{"team": "storage", "stage": "prod"}
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size, Tags: given, Record: providers.Record{"layout": "data"}})
	require.NoError(w.t, err)
	tags, err := reader.Tags(w.ctx, v.ID)
	require.NoError(w.t, err)
	for key, value := range given {
		assert.Equal(w.t, value, tags[key], key)
	}
	for key := range tags {
		assert.NotContains(w.t, key, "blockvol")
	}
	_, err = a.Create(w.ctx, providers.Spec{Name: "same", Size: w.Size, Tags: tags})
	require.NoError(w.t, err, "another volume can have them")
	_, err = w.Provider(w.t, "a", "other").(providers.TagReader).Tags(w.ctx, v.ID)
	require.ErrorIs(w.t, err, providers.ErrNotFound)
}
