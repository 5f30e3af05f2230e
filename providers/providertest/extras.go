package providertest

import (
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

func snapshotIsACopy(w *world) {
	a, s := w.snapshotter("a")
	b, sb := w.snapshotter("b")
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: w.Size, Record: providers.Record{"layout": "data", "formatted": "ext4", "reclaim": "delete"}})
	require.NoError(w.t, err)
	if w.Device != nil {
		w.put(a, "a", v, "before")
	}
	snap, err := s.Snapshot(w.ctx, v.ID, "nightly")
	require.NoError(w.t, err)
	assert.NotEmpty(w.t, snap.ID)
	assert.Equal(w.t, v.ID, snap.Volume)
	assert.Equal(w.t, v.Size, snap.Size)
	again, err := sb.Snapshot(w.ctx, v.ID, "nightly")
	require.NoError(w.t, err)
	assert.Equal(w.t, snap, again)
	other, err := s.Snapshot(w.ctx, v.ID, "weekly")
	require.NoError(w.t, err)
	assert.NotEqual(w.t, snap.ID, other.ID)
	assert.Equal(w.t, []string{"db"}, w.names(a), "a snapshot is no volume")

	require.NoError(w.t, a.Mark(w.ctx, v.ID, "later", "yes"))
	if w.Device != nil {
		w.put(a, "a", v, "after!")
	}
	spec := providers.Spec{Name: "copy", Snapshot: snap.ID, Record: providers.Record{"reclaim": "retain", "uid": "999"}}
	c, err := b.Create(w.ctx, spec)
	require.NoError(w.t, err)
	assert.NotEqual(w.t, v.ID, c.ID)
	assert.NotEqual(w.t, v.Serial, c.Serial)
	assert.Equal(w.t, snap.ID, c.Snapshot)
	assert.Equal(w.t, v.Size, c.Size)
	assert.Equal(w.t, providers.Record{"layout": "data", "formatted": "ext4", "reclaim": "retain", "uid": "999"}, c.Record)
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
	if r, ok := a.(providers.Resizer); ok {
		_, err = r.Resize(w.ctx, large.ID, 2*w.Size)
		require.NoError(w.t, err)
		snap, err = s.Snapshot(w.ctx, large.ID, "large")
		require.NoError(w.t, err)
		_, err = a.Create(w.ctx, providers.Spec{Name: "none", Size: w.Size, Snapshot: snap.ID})
		require.ErrorIs(w.t, err, providers.ErrInvalid)
	}
	w.missing(a, "none")
	_, err = s.Snapshot(w.ctx, v.ID, "late")
	require.ErrorIs(w.t, err, providers.ErrNotFound)
}

func snapshotInUse(w *world) {
	a, s := w.snapshotter("a")
	v := w.attach(a, w.create(a, "db"))
	snap, err := s.Snapshot(w.ctx, v.ID, "running")
	if w.SnapshotNeedsDetached {
		require.ErrorIs(w.t, err, providers.ErrHeld)
		w.detach(a, v)
		snap, err = s.Snapshot(w.ctx, v.ID, "running")
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

func (w *world) resizer(node string) (providers.Provider, providers.Resizer) {
	p := w.on(node)
	r, ok := p.(providers.Resizer)
	if !ok {
		w.t.Skip("the provider resizes no volumes")
	}
	return p, r
}

func resizeEnlarges(w *world) {
	a, r := w.resizer("a")
	v, err := a.Create(w.ctx, providers.Spec{Name: "db", Size: 2 * w.Size, Record: providers.Record{"layout": "data"}})
	require.NoError(w.t, err)
	_, err = r.Resize(w.ctx, v.ID, w.Size)
	require.ErrorIs(w.t, err, providers.ErrInvalid)
	assert.Equal(w.t, v, w.find(a, "db"))
	want := *v
	want.Size = 3 * w.Size
	for range 2 {
		got, err := r.Resize(w.ctx, v.ID, 3*w.Size)
		require.NoError(w.t, err)
		assert.Equal(w.t, &want, got)
		assert.Equal(w.t, &want, w.find(w.on("b"), "db"))
	}
	_, err = r.Resize(w.ctx, v.ID, 2*w.Size)
	require.ErrorIs(w.t, err, providers.ErrInvalid)
	odd, err := r.Resize(w.ctx, v.ID, 3*w.Size+1)
	require.NoError(w.t, err)
	assert.Greater(w.t, odd.Size, 3*w.Size)
	require.NoError(w.t, a.Delete(w.ctx, v.ID))
	_, err = r.Resize(w.ctx, v.ID, 4*w.Size)
	require.ErrorIs(w.t, err, providers.ErrNotFound)
}

func resizeReachesTheDevice(w *world) {
	a, r := w.resizer("a")
	if w.Device == nil {
		w.t.Skip("the harness shows no devices")
	}
	v := w.create(a, "db")
	w.put(a, "a", v, "bytes")
	v = w.attach(a, v)
	_, err := r.Resize(w.ctx, v.ID, 2*w.Size)
	require.NoError(w.t, err)
	v = w.find(a, "db")
	require.True(w.t, v.HeldBy(w.id(a)))
	w.detach(a, v)
	assert.Equal(w.t, "bytes", w.get(a, "a", v, w.Size, 5))
	w.put(a, "a", v, "grown") // at the new end
	assert.Equal(w.t, "grown", w.get(a, "a", v, 2*w.Size, 5))
}
