package driver

import (
	"cmp"
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

func TestAnAdoptedDiskIsKeptUnlessAskedOtherwise(t *testing.T) {
	for asked, kept := range map[string]bool{"": true, "retain": true, "delete": false} {
		for _, before := range []string{"", "delete", "snapshot", "retain"} { // by an earlier life with blockvol
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := a.start(t)
				d := w.newDisk("", 1<<30, nil)
				d.owned, d.fstype = false, "ext4"
				if before != "" {
					d.Record[recReclaim] = before
				}
				require.NoError(t, l.Create(within(t), "data", map[string]string{"volume-id": d.ID, "reclaim": asked}))
				info, err := l.Get(within(t), "data")
				require.NoError(t, err)
				assert.Equal(t, cmp.Or(asked, "retain"), info.Status["reclaim"], "%q after %q", asked, before)
				mustMount(t, l, "data", "1")
				mustUnmount(t, l, "data", "1")
				require.NoError(t, l.Remove(within(t), "data"))
				assert.Equal(t, kept, w.disks[d.ID] != nil, "%q after %q", asked, before)
				assert.Empty(t, w.snapshots)
			})
		}
	}
}

func TestACopyIsRemovedByItsOwnPolicyNotItsOrigins(t *testing.T) {
	for asked, snapshots := range map[string]int{"": 1, "delete": 1, "snapshot": 2} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := a.start(t)
			w.snapshots["snap"] = providers.Record{recFormatted: "ext4", recFSType: "ext4", recLayout: mount.LayoutData, recReclaim: "snapshot"}
			require.NoError(t, l.Create(within(t), "copy", map[string]string{"snapshot": "snap", "reclaim": asked}))
			info, err := l.Get(within(t), "copy")
			require.NoError(t, err)
			assert.Equal(t, cmp.Or(asked, "delete"), info.Status["reclaim"])
			require.NoError(t, l.Remove(within(t), "copy"))
			assert.Empty(t, w.disks)
			assert.Len(t, w.snapshots, snapshots, "%q", asked)
		})
	}
}

func TestThePolicyThatIsTheDefaultMayBeAskedFor(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "delete"}))
		require.ErrorContains(t, l.Create(within(t), "data", map[string]string{"reclaim": "retain"}), "exists with reclaim=delete, not retain")
	})
}
