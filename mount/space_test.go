package mount

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestSpaceIsThatOfTheVolume(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			_, err := h.Space(t.Context(), "vol", d.Device)
			require.ErrorIs(t, err, ErrNotStaged)
			path := stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
			before, err := h.Space(t.Context(), "vol", d.Device)
			require.NoError(t, err)
			assert.InDelta(t, d.Size, before.Total, float64(d.Size)/2)
			assert.LessOrEqual(t, before.Total, d.Size)
			assert.Equal(t, statfsBytes(t, path), before.Total)

			f, err := os.Create(filepath.Join(path, "file"))
			require.NoError(t, err)
			_, err = f.Write(make([]byte, 4*mib))
			require.NoError(t, err)
			require.NoError(t, unix.Syncfs(int(f.Fd())))
			require.NoError(t, f.Close())
			after, err := h.Space(t.Context(), "vol", d.Device)
			require.NoError(t, err)
			assert.InDelta(t, 4*mib, after.Used-before.Used, float64(mib))
			assert.InDelta(t, 4*mib, before.Available-after.Available, float64(mib))
			assert.LessOrEqual(t, after.Used+after.Available, after.Total)
			if fstype == "btrfs" {
				assert.Zero(t, after.Inodes)
			} else {
				assert.Equal(t, before.InodesUsed+1, after.InodesUsed)
				assert.Greater(t, after.Inodes, after.InodesUsed)
			}
			unstage(t, h, d, "vol")
		})
	}
}

// An empty directory is left behind by a mount that was taken away, and there may be another volume's mount.
func TestSpaceIsNeverThatOfAnotherFileSystem(t *testing.T) {
	h := newHost(t)
	one, other := formatted(t, h, "ext4"), formatted(t, h, "ext4")
	stage(t, h, other, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	_, err := h.Space(t.Context(), "vol", one.Device)
	require.ErrorIs(t, err, ErrNotStaged)
	unstage(t, h, other, "vol")
	empty := filepath.Join(h.published, "vol")
	require.NoError(t, os.Mkdir(empty, 0o700))
	defer func() { assert.NoError(t, os.Remove(empty)) }()
	_, err = h.Space(t.Context(), "vol", one.Device)
	require.ErrorIs(t, err, ErrNotStaged)
}

func TestSpaceIsNotInTheWayOfAnUnmount(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	stop, ended := make(chan struct{}), make(chan int)
	go func() {
		for looks := 0; ; looks++ {
			select {
			case <-stop:
				ended <- looks
				return
			default:
				_, _ = h.Space(context.Background(), "vol", d.Device)
			}
		}
	}()
	for range 5 {
		stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
		require.NoError(t, h.Unstage(t.Context(), "vol"))
		d.isFree(h)
	}
	close(stop)
	assert.Positive(t, <-ended)
}
