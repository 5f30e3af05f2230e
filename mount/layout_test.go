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

func TestOwnerAndModeAreSetOnce(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			uid, gid, mode := 1234, 5678, os.FileMode(0o2770)|os.ModeSticky
			mode = mode&os.ModePerm | os.ModeSetgid | os.ModeSticky
			spec := StageSpec{FSType: fstype, Layout: LayoutData, UID: &uid, GID: &gid, Mode: &mode}
			path := stage(t, h, d, "vol", spec)
			is := func() (uint32, uint32, uint32) {
				var st unix.Stat_t
				require.NoError(t, unix.Stat(path, &st))
				return st.Uid, st.Gid, st.Mode &^ unix.S_IFMT
			}
			u, g, m := is()
			assert.Equal(t, []uint32{1234, 5678, 0o3770}, []uint32{u, g, m})
			require.NoError(t, os.Chown(path, 1, 2))
			require.NoError(t, os.Chmod(path, 0o700))
			unstage(t, h, d, "vol")

			stage(t, h, d, "vol", spec)
			u, g, m = is()
			assert.Equal(t, []uint32{1, 2, 0o700}, []uint32{u, g, m}, "later they belong to the container")
			unstage(t, h, d, "vol")
		})
	}
}

// mountedRoot mounts the root of the file system, which a container cannot see.
func mountedRoot(t *testing.T, d *disk, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	must(t, "mount", d.Path, dir)
	do(dir)
	must(t, "umount", dir)
}

func TestLayouts(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := formatted(t, h, "ext4")
	data, root := StageSpec{FSType: "ext4", Layout: LayoutData}, StageSpec{FSType: "ext4", Layout: LayoutRoot}
	names := func(path string) (all []string) {
		entries, err := os.ReadDir(path)
		require.NoError(t, err)
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}

	uid := 7
	root.UID = &uid
	path := stage(t, h, d, "vol", root)
	assert.Equal(t, []string{"lost+found"}, names(path), "nothing is written to an adopted disk")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	assert.Zero(t, st.Uid)
	_, err := h.Stage(ctx, d.Device, "vol", data)
	require.ErrorIs(t, err, ErrOccupied, "it is mounted in the other layout")
	unstage(t, h, d, "vol")

	// A crash has left the directory unfinished.
	mountedRoot(t, d, func(dir string) { require.NoError(t, os.Mkdir(filepath.Join(dir, unfinished), 0o700)) })
	stage(t, h, d, "vol", data)
	unstage(t, h, d, "vol")
	mountedRoot(t, d, func(dir string) {
		assert.Equal(t, []string{dataDir, "lost+found"}, names(dir))
		require.NoError(t, os.Rename(filepath.Join(dir, dataDir), filepath.Join(dir, "moved")))
	})
	_, err = h.Stage(ctx, d.Device, "vol", data)
	require.ErrorIs(t, err, ErrForeignLayout, "an empty directory is not shown for data that was moved")
	d.isFree(h)
	for name, put := range map[string]func(path string) error{
		"a link": func(path string) error { return os.Symlink("/etc", path) },
		"a file": func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		mountedRoot(t, d, func(dir string) { require.NoError(t, put(filepath.Join(dir, dataDir))) })
		_, err = h.Stage(ctx, d.Device, "vol", data)
		require.ErrorIs(t, err, ErrForeignLayout, name)
		d.isFree(h)
		mountedRoot(t, d, func(dir string) { require.NoError(t, os.Remove(filepath.Join(dir, dataDir))) })
	}
	mountedRoot(t, d, func(dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "moved"))) })
	data.MountOptions = []string{"ro"}
	_, err = h.Stage(ctx, d.Device, "vol", data)
	require.ErrorIs(t, err, ErrForeignLayout, "nothing is made on a read-only mount")
	d.isFree(h)
}
