package driver

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
)

func TestWhatIsHereIsToldWithoutWaiting(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setFault(at("host.Space", failBefore))
		l := mounted(t, a.start(t), "data", "1")
		assert.Equal(t, []Here{{
			Name: "data", ID: "vol-1", State: "mounted", Device: "/dev/serial-1", Size: 1 << 30,
			Uses: []node.Use{{Kind: node.Docker, ID: "1"}},
		}}, l.Here())

		// A volume that is busy, and another whose release hangs in the kernel.
		w.setFault(at("cloud.Create", hang))
		var all sync.WaitGroup
		begun := time.Now()
		all.Go(func() { _ = l.Create(within(t), "other", nil) })
		synctest.Wait()
		w.setFault(at("host.Unstage", hang))
		a.containerEnds("1")
		all.Go(func() { _ = l.Unmount(within(t), "data", "1") })
		synctest.Wait()
		time.Sleep(5 * time.Second)
		now := time.Now()
		here := l.Here()
		assert.Equal(t, now, time.Now(), "it waited")
		require.Len(t, here, 2)
		here[0].Space, here[0].MeasuredAt = mount.Space{}, time.Time{}
		assert.Equal(t, Here{
			Name: "data", ID: "vol-1", State: "mounted", Device: "/dev/serial-1", Size: 1 << 30,
			Phase: volume.Unmounting, Message: "being unmounted", Since: begun, Releasing: begun,
		}, here[0])
		assert.Equal(t, Here{Name: "other", Phase: volume.Creating, Message: "being created", Since: begun}, here[1])
		l.kill()
		all.Wait()
	})
}

func TestSinceWhenAReleaseIsUnfinishedOutlastsItsAttempts(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1")
		w.setFault(at("cloud.Detach", failBefore))
		begun := time.Now()
		require.Error(t, l.Unmount(within(t), "data", "1"))
		time.Sleep(5 * time.Minute)
		here := l.Here()
		require.Len(t, here, 1)
		assert.Equal(t, begun, here[0].Releasing)
		assert.Equal(t, "attached", here[0].State)
		assert.NotEmpty(t, here[0].Problem)

		l.kill()
		begun = time.Now()
		l = a.start(t)
		assert.Equal(t, begun, l.Here()[0].Releasing, "this life knows of it since its start")
		w.setFault(calm)
		mustMount(t, l, "data", "2")
		assert.Zero(t, l.Here()[0].Releasing)
	})
}

func TestHowFullAVolumeIsIsMeasuredInTheBackground(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		synctest.Wait()
		here := l.Here()[0]
		assert.Equal(t, mount.Space{Total: 1 << 30, Used: 1 << 20, Available: 1<<30 - 2<<20, Inodes: 1000, InodesUsed: 10}, here.Space)
		measured := here.MeasuredAt
		is := status(t, l, "data")
		assert.Equal(t, int64(1<<20), is["used"])
		assert.Equal(t, int64(1<<30-2<<20), is["available"])
		assert.Equal(t, int64(10), is["inodes-used"])
		assert.Equal(t, int64(990), is["inodes-available"])

		// The device does not answer: the last figures stay.
		w.set(func() { w.disks["vol-1"].Size = 2 << 30 })
		w.setFault(at("host.Space", hang))
		time.Sleep(10 * time.Minute)
		assert.Equal(t, here.Space, l.Here()[0].Space)
		assert.Less(t, l.Here()[0].MeasuredAt.Sub(measured), time.Minute)
		l.kill()
	})
}
