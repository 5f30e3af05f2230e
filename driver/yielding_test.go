package driver

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// What a question does here is no news for another one.
func TestTwoNodesThatAskForAVolumeDoNotKeepEachOtherBusy(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		dev := &busyDisk{}
		made(t, a.start(t), "data").kill()
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{Node: "a", State: providers.Attached} })
		dev.busy.Store(true)
		l := a.start(t, func(c *Config) { dev.Host = c.Host; c.Host = dev })
		time.Sleep(time.Minute)
		synctest.Wait()
		before := dev.count.Load()
		ctx := limited(t, 10*time.Second)
		var all sync.WaitGroup
		for _, from := range []string{"b", "c"} {
			all.Go(func() {
				_, err := l.Yield(ctx, volume.Want{From: from, To: "a", Volume: "data", Disk: "vol-1", Serial: "serial-1", Known: volume.HoldsBusy})
				assert.NoError(t, err)
			})
		}
		all.Wait()
		assert.LessOrEqual(t, dev.count.Load()-before, uint64(20))
	})
}

// readEachSecond is a disk that another engine of the machine reads.
type readEachSecond struct {
	*busyDisk
	begun time.Time
}

func (r readEachSecond) Activity(mount.Device) (mount.Activity, error) {
	return mount.Activity{Reads: uint64(time.Since(r.begun) / time.Second)}, nil
}

func TestADiskThatAnotherEngineReadsIsNotYielded(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		made(t, a.start(t), "data").kill()
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{Node: "a", State: providers.Attached} })
		dev := readEachSecond{&busyDisk{}, time.Now()}
		l := a.start(t, func(c *Config) { dev.Host = c.Host; c.Host = dev })
		time.Sleep(time.Minute + 100*time.Millisecond)
		require.Equal(t, "a", w.holder("data"))
		for range 3 {
			_, err := l.Yield(within(t), volume.Want{From: "b", To: "a", Volume: "data", Disk: "vol-1", Serial: "serial-1"})
			require.NoError(t, err)
		}
		assert.Equal(t, "a", w.holder("data"))
	})
}

// The name may have come to another disk since, and the one who asks not know it yet.
func TestAnotherDiskOfTheNameIsNotYielded(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t, probing), "data", "probe")
		mustUnmount(t, l, "data", "probe") // kept for probeGrace
		holding, err := l.Yield(within(t), volume.Want{From: "b", To: "a", Volume: "data", Disk: "vol-former", Serial: "serial-former"})
		require.NoError(t, err)
		assert.Equal(t, volume.HoldsNothing, holding.State, "of that disk")
		synctest.Wait()
		assert.Equal(t, "a", w.holder("data"))
		holding, err = l.Yield(within(t), volume.Want{From: "b", To: "a", Volume: "data", Disk: "vol-former", Serial: "serial-1"})
		require.NoError(t, err)
		assert.Equal(t, volume.HoldsStray, holding.State, "its device is here, under whatever name")
	})
}

// A release that cannot end is told with its reason, and asking does not begin another one.
func TestAReleaseThatIsUnfinishedIsTold(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.setFault(at("cloud.Detach", failBefore))
		a.containerEnds("1")
		require.Error(t, l.Unmount(within(t), "data", "1"))
		w.count()
		for range 5 {
			holding, err := l.Yield(within(t), volume.Want{From: "b", To: "a", Volume: "data", Disk: "vol-1", Serial: "serial-1"})
			require.NoError(t, err)
			assert.Equal(t, volume.HoldsLeaving, holding.State)
			assert.Contains(t, holding.On("a"), "being released by node a: ")
		}
		assert.Zero(t, w.count()["Detach"])
	})
}

func TestADriverThatStopsLeavesNoQuestionWaiting(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		begun := time.Now()
		time.AfterFunc(time.Second, l.kill)
		holding, err := l.Yield(within(t), volume.Want{From: "b", To: "a", Volume: "data", Disk: "vol-1", Serial: "serial-1", Known: volume.HoldsInUse})
		require.NoError(t, err)
		assert.Equal(t, volume.HoldsInUse, holding.State)
		assert.Equal(t, time.Second, time.Since(begun))
	})
}
