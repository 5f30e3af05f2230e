package driver

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

func TestOnlyNamesThatDockerCanRemoveAreCreated(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		for _, name := range []string{"a", "A9", "shop_db-1.data", "0", "a..", strings.Repeat("x", 255)} {
			require.NoError(t, l.Create(within(t), name, nil), name)
			require.NoError(t, l.Remove(within(t), name), name)
		}
		for _, name := range []string{".", "..", "/", "a/..", "a/../b", "a:b", "a b", ".a", "-a", "_a", "ö", "a\n", "a\nb", "%2e", "a?b", "a#b", "", strings.Repeat("x", 256)} {
			require.Error(t, l.Create(within(t), name, nil), name)
		}
		assert.Empty(t, w.disks)
		err := l.Create(within(t), "a/../b", nil)
		assert.ErrorContains(t, err, `volume "a/../b" was not created: Docker could not remove a volume of that name; use letters,`)
	})
}

func TestAVolumeOfAnotherNameIsServedWhereItExists(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		for _, name := range []string{"..", "a/../b", "a:b"} {
			w.newDisk(name, 1<<30, providers.Record{recFSType: "ext4", recLayout: mount.LayoutData})
			info, err := l.Get(within(t), name)
			require.NoError(t, err)
			require.NoError(t, l.Create(within(t), name, nil), "it exists")
			mustMount(t, l, name, "1")
			all, err := l.List(within(t))
			require.NoError(t, err)
			require.Len(t, all, 1)
			assert.Equal(t, info.Name, all[0].Name)
			mustUnmount(t, l, name, "1")
			require.NoError(t, l.Remove(within(t), name))
			time.Sleep(fresh)
		}
	})
}
