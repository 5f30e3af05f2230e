package driver

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
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
		assert.ErrorContains(t, err, `Docker could not remove a volume of that name (volume "a/../b", node a); use letters,`)
	})
}

func TestAVolumeOfAnotherNameIsServedWhereItExists(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		for _, name := range []string{"..", "a/../b", "a:b"} {
			w.set(func() {
				w.newDisk(name, 1<<30, providers.Record{volume.KeyFSType: "ext4", volume.KeyLayout: mount.LayoutData})
			})
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
			time.Sleep(catalogTTL)
		}
	})
}

func TestAnAdoptedDiskIsKeptUnlessAskedOtherwise(t *testing.T) {
	for asked, kept := range map[string]bool{"": true, "retain": true, "delete": false} {
		for _, before := range []string{"", "delete", "snapshot", "retain"} { // by an earlier life with blockvol
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := a.start(t)
				var d *disk
				w.set(func() {
					d = w.newDisk("", 1<<30, nil)
					d.owned, d.fstype = false, "ext4"
					if before != "" {
						d.Record[volume.KeyReclaim] = before
					}
				})
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
			w.snapshots["snap"] = providers.Record{volume.KeyFormatted: "ext4", volume.KeyFSType: "ext4", volume.KeyLayout: mount.LayoutData, volume.KeyReclaim: "snapshot"}
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

func TestWhatMkfsWouldRefuseIsRefusedAtOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		err := l.Create(within(t), "data", map[string]string{"size": "1GiB", "mkfs-options": "-J size=1000"})
		require.ErrorContains(t, err, `mkfs.ext4 cannot format 1073741824 bytes with these options: Total journal size too big for filesystem. (volume "data"`)
		assert.Empty(t, w.disks)
		require.NoError(t, l.Create(within(t), "data", map[string]string{"size": "20GiB", "mkfs-options": "-J size=1000"}))
		require.NoError(t, l.Create(within(t), "data", map[string]string{"mkfs-options": "-J size=1000"}), "it exists, whatever mkfs says of the default size")
	})
}

func TestWhereMkfsIsMissingItsOptionsAreCheckedWhenAVolumeIsFormatted(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		require.NoError(t, a.start(t).Create(within(t), "data", map[string]string{"mkfs-options": "-J size=1000"}))
	})
}

// picky is a host that refuses a volume's options.
type picky struct {
	node.Host
	format, stage error
}

func (p picky) Format(ctx context.Context, dev mount.Device, spec mount.FormatSpec) error {
	if p.format != nil {
		return p.format
	}
	return p.Host.Format(ctx, dev, spec)
}

func (p picky) Stage(context.Context, mount.Device, string, mount.StageSpec) (string, error) {
	return "", p.stage
}

func TestAMountThatItsOptionsForbidSaysWhatToDo(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		for _, c := range []struct {
			host    picky
			options map[string]string
			says    string
		}{
			{
				picky{format: errors.New("mkfs.ext4 failed")},
				map[string]string{"mkfs-options": "-b 4096"},
				`it holds no data: if its mkfs-options "-b 4096" are the reason, remove it and create it again with others`,
			},
			{
				picky{stage: mount.ErrInvalid},
				map[string]string{"mount-options": "data=journal,commit=5"},
				`if its mount-options "data=journal,commit=5" are the reason and it is new, remove it and create it again with others; if it holds data, create another volume from a snapshot of it, with mount-options=defaults`,
			},
			{
				picky{stage: mount.ErrWrongFS},
				map[string]string{"snapshot": "snap"},
				`if it was created with another fstype than snapshot snap has, remove it and create it again without`,
			},
			// Where the options are not the reason, nothing is said of them.
			{picky{format: errors.New("mkfs.ext4 failed")}, nil, ""},
			{picky{stage: mount.ErrInvalid}, nil, ""},
			{picky{stage: mount.ErrUnreadable}, map[string]string{"mount-options": "commit=5"}, ""},
			{picky{stage: mount.ErrUnreadable}, map[string]string{"snapshot": "snap"}, ""},
			{picky{stage: mount.ErrWrongFS}, nil, ""},
		} {
			l := a.start(t, func(cfg *Config) { c.host.Host = cfg.Host; cfg.Host = c.host })
			require.NoError(t, l.Create(within(t), "data", c.options))
			_, err := l.Mount(within(t), "data", "1")
			require.ErrorContains(t, err, c.says)
			if c.says == "" {
				assert.NotContains(t, err.Error(), "create it again")
			}
			require.NoError(t, l.Remove(within(t), "data"))
			require.NoError(t, l.Close(within(t)))
			time.Sleep(catalogTTL)
		}
	})
}

func TestAVolumeWithOtherTagsIsNotWhatWasAskedFor(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		w.snapshots["snap"] = providers.Record{volume.KeyTags: digestOf(map[string]string{"team": "db"})}
		require.NoError(t, la.Create(within(t), "tagged", map[string]string{"tags": "team=db,stage=prod"}))
		require.NoError(t, la.Create(within(t), "copy", map[string]string{"snapshot": "snap"}))
		require.NoError(t, lb.Create(within(t), "tagged", map[string]string{"tags": "stage=prod, team=db"}), "the same in another order")
		require.NoError(t, lb.Create(within(t), "tagged", nil), "nothing is asked for")
		for _, other := range []string{"team=db", "team=db,stage=test", "team=db,stage=prod,x=y", "team=stage,db=prod"} {
			require.ErrorContains(t, lb.Create(within(t), "tagged", map[string]string{"tags": other}), "created with other tags", other)
		}
		require.ErrorContains(t, lb.Create(within(t), "copy", map[string]string{"tags": "team=db"}), "created with other tags", "those are its origin's")

		made(t, la, "old") // as earlier versions did, tagged or not
		require.NoError(t, lb.Create(within(t), "old", map[string]string{"tags": "team=db"}), "it does not tell")
		info, err := lb.Get(within(t), "tagged")
		require.NoError(t, err)
		assert.NotContains(t, info.Status, "tags")
	})
}
