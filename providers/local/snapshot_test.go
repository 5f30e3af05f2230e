package local

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestACopyKeepsHoles(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", 1<<30)
	image, err := os.OpenFile(p.disks.path(v.ID, ready), os.O_RDWR, 0)
	require.NoError(t, err)
	defer image.Close()
	for _, at := range []int64{0, 512<<20 + 8192, 1<<30 - 4096} {
		_, err := image.WriteAt([]byte("here"), at)
		require.NoError(t, err)
	}
	snap, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "one"})
	require.NoError(t, err)
	c, err := p.Create(t.Context(), providers.Spec{Name: "copy", Snapshot: snap.ID, Size: 2 << 30})
	require.NoError(t, err)
	for file, size := range map[string]int64{p.snaps.path(snap.ID, ready): 1 << 30, p.disks.path(c.ID, ready): 2 << 30} {
		f, err := os.Open(file)
		require.NoError(t, err)
		defer f.Close()
		info, err := f.Stat()
		require.NoError(t, err)
		assert.Equal(t, size, info.Size())
		assert.LessOrEqual(t, allocated(info), int64(64<<10))
		for _, at := range []int64{0, 512<<20 + 8192, 1<<30 - 4096} {
			word := make([]byte, 4)
			_, err := f.ReadAt(word, at)
			require.NoError(t, err)
			assert.Equal(t, "here", string(word))
		}
	}
}

func TestASnapshotIsNotDeletedWhileItIsCopied(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			dir := t.TempDir()
			if fstype == "xfs" {
				dir = mounted(t, "xfs", 1<<30)
			}
			m := newMachine(t, dir)
			a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
			madeWithSnapshot(t, a)
			snap := firstSnapshot(a)
			// Create has opened the snapshot and released the lock
			begun, image, source, err := a.begin(t.Context(), providers.Spec{Name: "copy", Snapshot: snap})
			require.NoError(t, err)
			defer image.Close()
			defer source.Close()
			short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			require.ErrorIs(t, b.DeleteSnapshot(short, snap), providers.ErrBusy)
			require.NoError(t, fill(t.Context(), image, source))
			require.NoError(t, a.disks.commit(begun.ID, image))
			data, err := os.ReadFile(a.disks.path(found(t, a, "copy").ID, ready))
			require.NoError(t, err)
			assert.True(t, bytes.HasPrefix(data, []byte("precious")))
		})
	}
}

func TestASnapshotThatCannotBeReadHarmsNoOther(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p, other := m.provider(t, "a", "main"), m.provider(t, "a", "other")
	take := func(p *Provider, description string) string {
		v, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		s, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: description})
		require.NoError(t, err)
		return s.ID
	}
	ids := func(p *Provider) (ids []string, err error) {
		all, err := p.ListSnapshots(t.Context())
		for _, s := range all {
			ids = append(ids, s.ID)
		}
		return ids, err
	}
	create(t, p, "db", 16<<20)
	create(t, other, "db", 16<<20)
	good, bad, theirs := take(p, "good"), take(p, "bad"), take(other, "theirs")
	require.NoError(t, os.WriteFile(p.snaps.path(bad, ".json"), []byte("{"), 0o600))
	found, err := ids(p)
	require.ErrorIs(t, err, errDamaged)
	require.ErrorContains(t, err, bad)
	assert.Equal(t, []string{good}, found)
	found, err = ids(other)
	require.NoError(t, err, "it is none of theirs")
	assert.Equal(t, []string{theirs}, found)
	require.NoError(t, os.WriteFile(p.snaps.path(good, ".json"), []byte("{"), 0o600))
	all, err := p.ListSnapshots(t.Context())
	require.ErrorIs(t, err, errDamaged)
	assert.NotNil(t, all, "the list itself could be read")
}
