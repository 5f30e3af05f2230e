package driver

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

func TestADiskOfRexrayShowsWhatItsContainersSaw(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		for plugin, layout := range map[string]string{"": mount.LayoutRoot, "rexray": mount.LayoutData, "linode": mount.LayoutRoot} {
			var d *disk
			w.set(func() {
				d = w.newDisk("of "+plugin, 1<<30, providers.Record{})
				d.owned = false
			})
			name := "adopted-" + plugin + "x"
			require.NoError(t, l.Adopt(within(t), name, d.ID, plugin))
			require.NoError(t, l.Adopt(within(t), name, d.ID, plugin), "again")
			assert.Equal(t, layout, status(t, l, name)["layout"], plugin)
			assert.Equal(t, "retain", status(t, l, name)["reclaim"], plugin)
		}
	})
}

func TestACloudWithoutOtherPluginsSaysSo(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		_, err := a.start(t).PluginDisks(within(t), "rexray")
		require.ErrorIs(t, err, volume.Invalid)
		require.ErrorContains(t, err, "adopt disks one by one")
	})
}
