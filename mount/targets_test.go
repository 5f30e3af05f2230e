package mount

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAPathThatCannotBeATargetIsRefused(t *testing.T) {
	ctx := context.Background()
	h, d, path, dir := staged(t, "ext4")
	for _, target := range []string{
		h.published, filepath.Dir(h.published), path, path + "/inside", filepath.Join(h.scratch, "target"),
		"", "/", ".", "target", dir + "/", dir + "/./target", dir + "/../target",
	} {
		require.ErrorIs(t, h.Bind(ctx, d.Device, "vol", target, false), ErrInvalid, target)
		require.ErrorIs(t, h.Unbind(ctx, d.Device, target), ErrInvalid, target)
	}
	missing := filepath.Join(dir, "missing", "target")
	require.ErrorIs(t, h.Bind(ctx, d.Device, "vol", missing, false), os.ErrNotExist, "only the target is made, not what it is in")
	require.NoError(t, h.Unbind(ctx, d.Device, missing))
	require.Error(t, h.Bind(ctx, d.Device, "../vol", filepath.Join(dir, "target"), false))
	require.NoDirExists(t, filepath.Join(dir, "target"))
	unstage(t, h, d, "vol")
}

func TestATargetUnderASymlinkIsResolved(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	for range 2 {
		require.NoError(t, h.Bind(ctx, d.Device, "vol", filepath.Join(link, "target"), false))
		requireShown(t, d, filepath.Join(dir, "target"), false)
	}
	used, err := h.inUse(ctx, d.Device, filepath.Join(link, "target"))
	require.NoError(t, err)
	assert.False(t, used)
	require.NoError(t, h.Unbind(ctx, d.Device, filepath.Join(link, "target")))
	unstage(t, h, d, "vol")
}

// Each case is a way for another process of the machine to get the mount at a target.
func TestAKnownTargetDoesNotCountAsUse(t *testing.T) {
	for _, fstype := range FSTypes() {
		for _, c := range []struct {
			name, propagation, script string
			used                      bool
		}{
			{"nobody", "slave", "true", false},
			{"a service that follows our mounts", "slave", "true", false},
			{"a service that shares our mounts", "shared", "true", false},
			{"a namespace cut off", "private", "true", false},
			{"a copy of the directory with the targets", "slave", `d=$(mktemp -d); mount --rbind "$DIR" "$d"; mount --make-rprivate "$d"`, false},
			{"a container", "slave", `d=$(mktemp -d); mount --bind "$VOL" "$d"; mount --make-private "$d"`, true},
			{"a container that sees the volume beside the targets", "private", `d=$(mktemp -d); mount --bind "$VOL" "$d"; umount "$VOL"; mkdir "$DIR/other"; mount --move "$d" "$DIR/other"`, true},
			{"a service that mounted something inside", "slave", `mkdir -p "$VOL/sub"; mount -t tmpfs none "$VOL/sub"`, true},
		} {
			t.Run(fstype+" "+c.name, func(t *testing.T) {
				ctx := context.Background()
				h, d, _, dir := staged(t, fstype)
				target, reader := filepath.Join(dir, "target"), filepath.Join(dir, "reader")
				require.NoError(t, h.Bind(ctx, d.Device, "vol", target, false))
				require.NoError(t, h.Bind(ctx, d.Device, "vol", reader, true))
				t.Setenv("VOL", target)
				t.Setenv("DIR", dir)
				t.Setenv("TMPDIR", t.TempDir())
				end := inNewNamespace(t, c.propagation, c.script)
				is := func(targets ...string) bool {
					used, err := h.inUse(ctx, d.Device, targets...)
					require.NoError(t, err)
					return used
				}
				assert.Equal(t, c.used, is(target, reader))
				assert.True(t, is(target), "the other target is a consumer")
				assert.True(t, is(reader))
				assert.True(t, is())
				assert.True(t, is(filepath.Join(dir, "missing", "target"), "not a path"))

				end()
				if strings.Contains(c.script, "other") {
					require.NoError(t, os.Remove(filepath.Join(dir, "other")))
				}
				require.NoError(t, h.Unbind(ctx, d.Device, target))
				require.NoError(t, h.Unstage(ctx, "vol"))
				assert.False(t, is(reader), "a known target is not use without the staged mount either")
				assert.True(t, is())
				require.NoError(t, h.Unbind(ctx, d.Device, reader))
				d.isFree(h)
			})
		}
	}
}

// Callers with different targets share one pass over the mount tables, but not the result.
func TestEachCallerOfInUseHasItsOwnTargets(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	target := filepath.Join(dir, "target")
	require.NoError(t, h.Bind(ctx, d.Device, "vol", target, false))
	var calls sync.WaitGroup
	for i := range 20 {
		calls.Go(func() {
			var targets []string
			if i%2 == 0 {
				targets = []string{target}
			}
			used, err := h.inUse(ctx, d.Device, targets...)
			assert.Equal(t, i%2 != 0, used, "%v", err)
		})
	}
	calls.Wait()
	require.NoError(t, h.Unbind(ctx, d.Device, target))
	unstage(t, h, d, "vol")
}
