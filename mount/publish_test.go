package mount

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAVolumeIsFoundFormattedMountedAndUnmounted(t *testing.T) {
	for _, fstype := range FSTypes() {
		for _, staged := range []bool{false, true} {
			name := fstype
			if staged {
				name += " on a kernel before 6.15"
			}
			t.Run(name, func(t *testing.T) {
				ctx := context.Background()
				h := newHost(t)
				h.alwaysStage = staged
				d := newDisk(t, sizes[fstype])

				dev, err := h.Find(ctx, d.Serial)
				require.NoError(t, err)
				require.Equal(t, d.Device, dev)
				c, err := h.Probe(ctx, dev)
				require.NoError(t, err)
				require.Equal(t, Contents{Blank: true}, c)

				require.NoError(t, h.Format(ctx, dev, FormatSpec{FSType: fstype, Size: dev.Size}))
				c, err = h.Probe(ctx, dev)
				require.NoError(t, err)
				require.Equal(t, Contents{FSType: fstype, Found: []string{fstype}}, c)
				held, err := h.Held(dev)
				require.NoError(t, err)
				require.False(t, held)

				spec := PublishSpec{FSType: fstype, Layout: LayoutData}
				path, err := h.Publish(ctx, dev, "vol", spec)
				require.NoError(t, err)
				require.Equal(t, filepath.Join(h.published, "vol"), path)
				names, err := os.ReadDir(path)
				require.NoError(t, err)
				assert.Empty(t, names, "a new volume is empty")
				require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))

				again, err := h.Publish(ctx, dev, "vol", spec)
				require.NoError(t, err, "a second call is success")
				assert.Equal(t, path, again)
				up, err := h.IsPublished(ctx, "vol", dev)
				require.NoError(t, err)
				assert.True(t, up)
				all, err := h.Published(ctx)
				require.NoError(t, err)
				assert.Equal(t, []Mounted{{Dir: "vol", Device: dev.Name, Major: dev.Major, Minor: dev.Minor, FSType: fstype}}, all)
				held, err = h.Held(dev)
				require.NoError(t, err)
				assert.True(t, held)
				used, err := h.InUse(ctx, dev)
				require.NoError(t, err)
				assert.False(t, used, "only our own mount is there")

				unpublish(t, h, d, "vol")
				require.NoDirExists(t, path)
				require.NoError(t, h.Unpublish(ctx, "vol"), "a second call is success")
				up, err = h.IsPublished(ctx, "vol", dev)
				require.NoError(t, err)
				assert.False(t, up)
				used, err = h.InUse(ctx, dev)
				require.NoError(t, err)
				assert.False(t, used)

				publish(t, h, d, "vol", spec)
				b, err := os.ReadFile(filepath.Join(path, "file"))
				require.NoError(t, err)
				assert.Equal(t, "kept", string(b))
				unpublish(t, h, d, "vol")
			})
		}
	}
}

func TestABusyVolumeStaysMounted(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	path := publish(t, h, d, "vol", PublishSpec{FSType: "ext4", Layout: LayoutData})

	f, err := os.Create(filepath.Join(path, "open"))
	require.NoError(t, err)
	require.ErrorIs(t, h.Unpublish(context.Background(), "vol"), ErrBusy)
	up, err := h.IsPublished(context.Background(), "vol", d.Device)
	require.NoError(t, err)
	assert.True(t, up)

	require.NoError(t, f.Close())
	unpublish(t, h, d, "vol")
}
