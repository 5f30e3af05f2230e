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

// The engine has a copy of the directory with the targets. It must see the volume there, and see it read-only at once: an attribute
// that is changed after the mount was attached would not reach the copy.
func TestABindIsReadOnlyBeforeItIsPropagated(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	engine := t.TempDir()
	require.NoError(t, unix.Mount(dir, engine, "", unix.MS_BIND, "")) // a peer of it
	require.NoError(t, unix.Mount("", engine, "", unix.MS_SLAVE, ""))
	for readOnly, name := range map[bool]string{true: "reader", false: "writer"} {
		require.NoError(t, h.Bind(ctx, d.Device, "vol", filepath.Join(dir, name), readOnly))
		requireShown(t, d, filepath.Join(engine, name), readOnly)
		require.NoError(t, h.Unbind(ctx, d.Device, filepath.Join(dir, name)))
		m, err := mountAt(filepath.Join(engine, name))
		require.NoError(t, err)
		assert.Nil(t, m)
	}
	require.NoError(t, unix.Unmount(engine, 0))
	unstage(t, h, d, "vol")
}

func TestAMountInsideATargetStaysThere(t *testing.T) {
	ctx := context.Background()
	h, d, path, dir := staged(t, "ext4")
	require.NoError(t, os.Mkdir(filepath.Join(path, "sub"), 0o700))
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	require.NoError(t, h.Bind(ctx, d.Device, "vol", one, false))
	require.NoError(t, h.Bind(ctx, d.Device, "vol", two, false))
	require.NoError(t, unix.Mount("none", filepath.Join(one, "sub"), "tmpfs", 0, ""))
	for _, elsewhere := range []string{path, two} {
		m, err := mountAt(filepath.Join(elsewhere, "sub"))
		require.NoError(t, err)
		assert.Nil(t, m, elsewhere)
	}
	require.ErrorIs(t, h.Unbind(ctx, d.Device, one), ErrBusy, "the consumer's mount is on it")
	require.NoError(t, h.Unbind(ctx, d.Device, two))
	require.NoError(t, h.Unstage(ctx, "vol"))
	require.NoError(t, unix.Unmount(filepath.Join(one, "sub"), 0))
	require.NoError(t, h.Unbind(ctx, d.Device, one))
	d.isFree(h)
}
