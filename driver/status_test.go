package driver

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

func TestTheStatusOfAVolumeIsWhatIsInEffect(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.set(func() { w.departure = time.Minute })
		w.snapshots["snap"] = providers.Record{volume.KeyFSType: "xfs", volume.KeyLayout: mount.LayoutData, volume.KeyFormatted: "xfs"}
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", map[string]string{"size": "2", "tags": "team=db", "uid": "999"}))
		require.NoError(t, l.Create(within(t), "copy", map[string]string{"snapshot": "snap", "size": "1"}))
		assert.Equal(t, map[string]any{
			"id": "vol-1", "size": "2GiB", "layout": "data", "reclaim": "delete", "formatted": false, "fstype": "ext4", "uid": "999",
			"zone": "z1", "state": "detached",
		}, status(t, l, "data"))
		assert.Equal(t, map[string]any{
			"id": "vol-2", "size": "1GiB", "layout": "data", "reclaim": "delete", "formatted": true, "fstype": "xfs",
			"zone": "z1", "state": "detached", "snapshot": "snap",
		}, status(t, l, "copy"))
		w.alter(func(d *disk) { d.Zone = "" })
		time.Sleep(catalogTTL)
		assert.NotContains(t, status(t, l, "copy"), "zone")
		w.alter(func(d *disk) { d.Zone = "z1" })

		mustMount(t, l, "data", "1")
		since := time.Now().UTC().Format(time.RFC3339)
		mustMount(t, l, "data", "2")
		synctest.Wait()
		w.count()
		is := status(t, l, "data")
		assert.Equal(t, map[string]any{
			"id": "vol-1", "size": "2GiB", "layout": "data", "reclaim": "delete", "formatted": true, "fstype": "ext4", "uid": "999",
			"zone": "z1", "state": "mounted", "node": "a", "containers": 2, "device": "/dev/serial-1", "mounted-since": since,
			"used": int64(1 << 20), "available": int64(2<<30 - 2<<20), "inodes-used": int64(10), "inodes-available": int64(990),
		}, is)
		mustUnmount(t, l, "data", "2")
		mustUnmount(t, l, "data", "1")
		is = status(t, l, "data")
		assert.Equal(t, "detaching", is["state"])
		assert.Equal(t, "a", is["node"])
		assert.NotContains(t, is, "containers")
		assert.Zero(t, w.count()["Find"], "what this node does itself it knows")
		time.Sleep(2 * time.Minute)
		is = status(t, l, "data")
		assert.Equal(t, "detached", is["state"])
		assert.NotContains(t, is, "node")
	})
}

func TestTheNodesPlacesForDisksAreCountedSeldom(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.count()
		slots := func() Slots {
			slots, err := l.Slots(within(t))
			require.NoError(t, err)
			return slots
		}
		assert.Equal(t, Slots{Most: 4, Used: 1}, slots())
		mounted(t, l, "other", "2")
		assert.Equal(t, Slots{Most: 4, Used: 2}, slots())
		mustUnmount(t, l, "other", "2")
		time.Sleep(catalogTTL - time.Millisecond)
		assert.Equal(t, Slots{Most: 4, Used: 1}, slots())
		assert.Equal(t, 3, w.count()["Slots"])
		assert.Equal(t, Slots{Most: 4, Used: 1}, slots())
		assert.Zero(t, w.count()["Slots"], "for a few seconds")

		time.Sleep(catalogTTL)
		w.setFault(at("cloud.Slots", failBefore))
		_, err := l.Slots(within(t))
		require.ErrorIs(t, err, errInjected)
		w.setFault(calm)
		assert.Equal(t, Slots{Most: 4, Used: 1}, slots(), "a failure is not remembered")
	})
}

func TestAllIsKnownOfAllVolumesByOneList(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		mounted(t, b.start(t), "other", "2")
		l.kill()
		l = a.start(t)
		synctest.Wait()
		time.Sleep(time.Minute) // the start is over
		w.count()
		all, err := l.All(within(t))
		require.NoError(t, err)
		require.Len(t, all, 2)
		assert.Equal(t, "mounted", all[0].Status["state"])
		assert.Equal(t, "b", all[1].Status["node"])
		assert.Equal(t, map[string]int{"List": 1}, w.count())
		_, err = l.All(within(t))
		require.NoError(t, err)
		assert.Empty(t, w.count())
	})
}

func TestWhoUsesAVolumeIsTold(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		mounted(t, l, "other", "2")
		users := func() []any {
			var all []any
			for _, info := range l.Attached() {
				all = append(all, info.Users, info.Status["used-by"])
			}
			return all
		}
		one, two := mount.Users{{Container: "of-1"}}, mount.Users{{Container: "of-2"}}
		l.Look(within(t))
		assert.Equal(t, []any{one, []string{"container of-1"}, two, []string{"container of-2"}}, users())

		a.containerEnds("2")
		l.Look(within(t), "data", "none")
		assert.Len(t, users()[2], 1, "only who uses data was looked up")
		l.Look(within(t), "other")
		assert.Equal(t, []any{one, []string{"container of-1"}, mount.Users(nil), nil}, users())

		a.containerEnds("1")
		mounted(t, l, "data", "3")
		time.Sleep(reconcileEvery + time.Second)
		synctest.Wait()
		three := mount.Users{{Container: "of-3"}}
		assert.Equal(t, three, l.Attached()[0].Users, "each half minute without a look")

		w.setFault(at("host.Users", hang))
		begun := time.Now()
		l.Look(limited(t, time.Second))
		assert.Equal(t, time.Second, time.Since(begun))
		assert.Equal(t, three, l.Attached()[0].Users, "what was known has to do")
		w.setFault(calm)
	})
}

// The cloud is away, and the plugin has just started.
func TestTheStatusOfAVolumeThatOnlyTheJournalKnows(t *testing.T) {
	for phase, entry := range map[string]func(e *node.Entry){
		"":          func(*node.Entry) {},
		"releasing": func(e *node.Entry) { e.Releasing = true },
	} {
		t.Run(phase, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				mounted(t, a.start(t), "data", "1").kill()
				created := w.disk("data").CreatedAt
				a.engineTakesMounts()
				synctest.Wait()
				entry(a.journal["data"])
				w.setFault(at("cloud.List", failBefore))
				l := a.start(t)
				synctest.Wait()
				info, err := l.Get(within(t), "data")
				require.NoError(t, err)
				assert.Equal(t, "data", info.Name)
				assert.True(t, created.Equal(info.CreatedAt))
				want := map[string]any{"id": "vol-1", "containers": 1, "used-by": []string{"container of-1"}, "state": "attached"}
				if phase != "" {
					want["phase"], want["message"] = phase, "being released"
				}
				assert.Equal(t, want, info.Status)
				w.setFault(calm)
				a.containerEnds("1")
			})
		})
	}
}

func TestTheListIsWhatTheCloudSays(t *testing.T) {
	names := func(t *testing.T, l *life) string {
		t.Helper()
		all, err := l.List(within(t))
		require.NoError(t, err)
		var names []string
		for _, info := range all {
			names = append(names, info.Name+"="+info.Mountpoint)
		}
		return strings.Join(names, " ")
	}
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := made(t, made(t, a.start(t), "m"), "z")
		for _, name := range []string{"c", "k", "b", "q"} {
			made(t, l, name)
		}
		mounted(t, l, "a", "1")
		assert.Equal(t, "a=/published/a b= c= k= m= q= z=", names(t, l))

		synctest.Wait() // it has looked for strays
		w.count()
		time.Sleep(catalogTTL)
		for range 3 {
			names(t, l)
		}
		assert.Equal(t, 1, w.count()["List"])

		// Two of one name are missing, and the others there.
		time.Sleep(catalogTTL)
		w.set(func() { w.newDisk("z", 1<<30, nil).twin = true })
		assert.Equal(t, "a=/published/a b= c= k= m= q=", names(t, l))

		time.Sleep(catalogTTL)
		w.setFault(at("cloud.List", failBefore))
		for range 2 {
			_, err := l.List(within(t))
			require.ErrorIs(t, err, errInjected)
			require.ErrorContains(t, err, "the volumes cannot be listed")
		}
		w.setFault(calm)
		mustUnmount(t, l, "a", "1")

		// A list that is on its way does not take away what was made meanwhile.
		w.set(func() { w.latency = 5 * time.Second })
		lb := b.start(t)
		synctest.Wait()
		require.NoError(t, lb.Create(within(t), "new", nil))
		time.Sleep(5 * time.Second)
		w.set(func() { w.latency = 0 })
		assert.Contains(t, names(t, lb), "new=")
	})
}

func TestAVolumeThatIsGoneIsNotRememberedWhenTheCloudIsAway(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		made(t, la, "data")
		w.count()
		for range 2 {
			_, err := la.Get(within(t), "data")
			require.NoError(t, err)
		}
		assert.Zero(t, w.count()["Find"], "it was just made here")
		require.NoError(t, lb.Remove(within(t), "data"))
		time.Sleep(time.Minute)
		_, err := la.Get(within(t), "data")
		require.ErrorIs(t, err, volume.NotFound)
		w.setFault(at("cloud.Find", failBefore))
		_, err = la.Get(within(t), "data")
		require.ErrorIs(t, err, volume.Unsure)
		w.setFault(calm)
	})
}

func TestAVolumeThatExistsIsNotMadeAnew(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.set(func() { w.newDisk("theirs", 1<<30, nil).owned = false })
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "adopted", map[string]string{"volume-id": "vol-1"}))
		require.NoError(t, l.Create(within(t), "data", map[string]string{"size": "2"}))
		for _, c := range []struct{ name, option, value, says string }{
			{"data", "volume-id", "vol-1", `the volume exists with volume-id=vol-2, not vol-1`},
			{"data", "size", "3", `the volume exists with size=2GiB, not 3GiB`},
			{"data", "snapshot", "snap", `the volume exists with snapshot=, not snap`},
			{"data", "fstype", "xfs", `the volume exists with fstype=ext4, not xfs`},
			{"data", "sise", "3", `unknown option "sise"`},
		} {
			require.ErrorContains(t, l.Create(within(t), c.name, map[string]string{c.option: c.value}), c.says)
		}
		for _, c := range []struct{ name, option, value string }{
			{"adopted", "volume-id", "vol-1"}, {"data", "size", "2"}, {"data", "size", "1"}, {"data", "size", ""}, {"data", "type", "ssd"},
		} {
			require.NoError(t, l.Create(within(t), c.name, map[string]string{c.option: c.value}), "%s=%s", c.option, c.value)
		}
		assert.Len(t, w.disks, 2)
		assert.Equal(t, mount.LayoutRoot, status(t, l, "adopted")["layout"])
		_, err := l.Path(within(t), "nothing")
		require.ErrorIs(t, err, volume.NotFound)
		require.ErrorContains(t, l.Create(within(t), "a\nb", nil), "characters that cannot be printed")
		require.ErrorContains(t, l.Create(within(t), "bad", map[string]string{"sise": "3"}), `(volume "bad"`)

		// Another node is first, and its volume is another.
		w.setLag(5 * time.Second)
		require.NoError(t, l.Create(within(t), "race", nil))
		require.ErrorContains(t, b.start(t).Create(within(t), "race", map[string]string{"size": "3"}), `the volume exists with size=1GiB, not 3GiB`)
	})
}

// rich is a cloud that has every option.
type rich struct {
	*fakeProvider
	asked providers.Spec
}

func (*rich) Supports() []string { return cloudOptions }

func (p *rich) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	p.asked = spec
	return p.fakeProvider.Create(ctx, spec)
}

func TestOptionsReachTheCloud(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		var p *rich
		l := a.start(t, func(c *Config) { p = &rich{fakeProvider: c.Provider.(*fakeProvider)}; c.Provider = p })
		for _, c := range []struct{ option, value, says string }{
			{"iops", "0", "must be a whole number above 0"},
			{"iops", "99999999999999999999", "must be a whole number above 0"},
			{"throughput", "-1", "must be a whole number above 0"},
			{"encrypted", "perhaps", "must be true or false"},
			{"tags", ",", "must be a list"},
			{"size", "9PiB", "must be a size"},
			{"size", "99999999999999999999B", "too large"},
		} {
			require.ErrorContains(t, l.Create(within(t), "data", map[string]string{c.option: c.value}), c.says, "%s=%s", c.option, c.value)
		}
		require.NoError(t, l.Create(within(t), "data", map[string]string{
			"size": "16MiB", "type": "fast", "iops": "1", "throughput": "2", "encrypted": "TRUE", "kms-key": "key", "zone": "z1", "tags": "a=b",
			"mkfs-options": "-m 0",
		}))
		assert.Equal(t, int64(16<<20), p.asked.Size, "the smallest that ext4 takes")
		p.asked.Record = nil
		assert.Equal(t, providers.Spec{
			Name: "data", Size: 16 << 20, Type: "fast", IOPS: 1, Throughput: 2, Encrypted: true, KMSKey: "key", Zone: "z1",
			Tags: map[string]string{"a": "b"},
		}, p.asked)
		require.NoError(t, l.Create(within(t), "longest", map[string]string{"mkfs-options": "-L" + strings.Repeat(" ", 252) + "x"}))
		for text, bytes := range map[string]int64{"8388607TiB": 8388607 << 40, "9223372036854775807B": 1<<63 - 1} {
			size, err := volume.ParseSize(text)
			require.NoError(t, err)
			assert.Equal(t, bytes, size)
		}
		_, err := volume.ParseSize("5x")
		require.Error(t, err)
		assert.Equal(t, "1TiB", volume.FormatSize(1<<40))
		assert.Equal(t, "1025KiB", volume.FormatSize(1025<<10))
		assert.Equal(t, "1023B", volume.FormatSize(1023))
		assert.Equal(t, "0B", volume.FormatSize(0))
	})
}

// watched is a kernel that remembers how it was to mount.
type watched struct {
	node.Host
	spec mount.StageSpec
}

func (h *watched) Stage(ctx context.Context, dev mount.Device, dir string, spec mount.StageSpec) (string, error) {
	h.spec = spec
	return h.Host.Stage(ctx, dev, dir, spec)
}

func TestOptionsReachTheMount(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		var h *watched
		l := a.start(t, func(c *Config) { h = &watched{Host: c.Host}; c.Host = h })
		mounted(t, l, "plain", "1")
		assert.Nil(t, h.spec.UID)
		assert.Nil(t, h.spec.GID)
		assert.Nil(t, h.spec.Mode)
		assert.Empty(t, h.spec.MountOptions)
		require.NoError(t, l.Create(within(t), "data", map[string]string{"uid": "1", "gid": "0", "mode": "6751", "mount-options": "noatime,nodev"}))
		mustMount(t, l, "data", "2")
		require.NotNil(t, h.spec.UID)
		require.NotNil(t, h.spec.GID)
		require.NotNil(t, h.spec.Mode)
		assert.Equal(t, 1, *h.spec.UID)
		assert.Equal(t, 0, *h.spec.GID)
		assert.Equal(t, os.ModeSetuid|os.ModeSetgid|0o751, *h.spec.Mode)
		assert.Equal(t, []string{"noatime", "nodev"}, h.spec.MountOptions)
		assert.Equal(t, "ext4", h.spec.FSType)
		assert.Equal(t, mount.LayoutData, h.spec.Layout)
		mustUnmount(t, l, "plain", "1")
		mustUnmount(t, l, "data", "2")
	})
}

func TestADriverNeedsOnlyACloudAKernelAndADirectory(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		dir := t.TempDir()
		l := &life{machine: a}
		out := logrus.StandardLogger().Out
		logrus.SetOutput(io.Discard)
		defer logrus.SetOutput(out)
		d, err := New(Config{Provider: w.cloud.provider(t, l), Host: &fakeHost{l}, PublishedDir: "/published", StateDir: dir})
		require.NoError(t, err)
		l.Driver, a.current = d, l
		mounted(t, l, "data", "1")
		assert.Equal(t, int64(10<<30), w.disk("data").Size)
		assert.Equal(t, "ext4", w.disk("data").fstype)
		file, err := os.ReadFile(filepath.Join(dir, "journal", "data.json"))
		require.NoError(t, err)
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		require.NoError(t, err)
		assert.Contains(t, string(file), `"boot":"`+strings.TrimSpace(string(boot))+`"`)

		_, err = New(Config{StateDir: filepath.Join(dir, "journal", "data.json")})
		require.ErrorContains(t, err, "the state directory cannot be used")
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.Close(within(t)))
	})
}

func TestWhatADriverIsToldCounts(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		dir := t.TempDir()
		l := &life{machine: a}
		d, err := New(Config{
			Provider: w.cloud.provider(t, l), Host: &fakeHost{l}, PublishedDir: "/published", StateDir: dir, Log: quiet(),
			Boot: "third", DefaultSize: 2 << 30, DefaultFSType: "xfs",
		})
		require.NoError(t, err)
		l.Driver, a.current = d, l
		mounted(t, l, "data", "1")
		assert.Equal(t, int64(2<<30), w.disk("data").Size)
		assert.Equal(t, "xfs", w.disk("data").fstype)
		file, err := os.ReadFile(filepath.Join(dir, "journal", "data.json"))
		require.NoError(t, err)
		assert.Contains(t, string(file), `"boot":"third"`)
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.Close(within(t)))
	})
}

// unreadable is a journal of which nothing can be read.
type unreadable struct{ node.Journal }

func (unreadable) Load() (node.Loaded, error) { return node.Loaded{}, errInjected }

func TestWithoutItsJournalADriverDoesNotStart(t *testing.T) {
	_, err := New(Config{Log: quiet(), Journal: unreadable{}, Boot: "boot"})
	require.ErrorIs(t, err, errInjected)
}

func TestAVolumeThatIsMadeAnewElsewhereIsSeenWhereItWasRemoved(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		made(t, la, "data")
		require.NoError(t, la.Remove(within(t), "data"))
		made(t, lb, "data")
		assert.Equal(t, "vol-2", status(t, la, "data")["id"])
	})
}

// A cloud that never answers holds a volume for so long and no longer. To copy a snapshot takes longer.
func TestACreateThatIsNeverAnsweredIsGivenUp(t *testing.T) {
	for limit, options := range map[time.Duration]map[string]string{changeTimeout: nil, workTimeout: {"snapshot": "snap"}} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			w.setFault(at("cloud.Create", hang))
			begin := time.Now()
			require.Error(t, a.start(t).Create(limited(t, 2*workTimeout), "data", options))
			assert.Equal(t, limit, time.Since(begin))
		})
	}
}
