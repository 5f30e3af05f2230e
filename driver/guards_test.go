package driver

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// The tests of this file each fail if one guard of the driver is lost. `make mutate` removes the guards one by one.

func TestACopyOfASnapshotIsNotFormattedThoughItsMarkIsLost(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "copy", map[string]string{"snapshot": "snap-1"}))
		synctest.Wait()
		w.alter(func(d *disk) {
			d.fstype = "" // its blocks have not been copied yet
			d.Record[volume.KeyFSType] = "ext4"
			delete(d.Record, volume.KeyFormatted)
		})
		time.Sleep(time.Minute) // what Create saw of it is forgotten
		_, err := l.Mount(within(t), "copy", "1")
		require.ErrorContains(t, err, "blank but was formatted before")
		assert.Zero(t, w.disk("copy").formats)

		w.alter(func(d *disk) { d.fstype = "ext4" })
		mustMount(t, l, "copy", "2")
		mustUnmount(t, l, "copy", "2")
	})
}

// detaches counts the requests to detach that a machine sends.
func detaches(w *world, m *machine) *int {
	n := 0
	w.setFault(func(node, call string) fault {
		if node == m.name && call == "cloud.Detach" {
			n++
		}
		return noFault
	})
	return &n
}

func TestUnderAlwaysAHolderIsGivenTimeToRelease(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t, takesAlways)
		mounted(t, la, "data", "1")
		time.Sleep(time.Minute)
		forced := detaches(w, b)
		var stops sync.WaitGroup
		stops.Go(func() {
			time.Sleep(holderGrace - 2*time.Second)
			mustUnmount(t, la, "data", "1")
		})
		mustMount(t, lb, "data", "2")
		stops.Wait()
		assert.Zero(t, *forced, "a was releasing the volume by itself")
	})
}

func TestATakeoverIsOrderedOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		mounted(t, la, "data", "1")
		a.powerOff()
		time.Sleep(time.Minute)
		w.setLag(5 * time.Second) // the cloud goes on calling a the holder
		ordered := detaches(w, b)
		mustMount(t, lb, "data", "2")
		assert.Equal(t, 1, *ordered)
	})
}

func TestAHolderThatIsDetachingIsNotTakenOver(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		mounted(t, la, "data", "1")
		synctest.Wait()
		w.set(func() { w.departure = 8 * time.Second })
		mustUnmount(t, la, "data", "1")
		a.powerOff()
		ordered := detaches(w, b)
		mustMount(t, lb, "data", "2")
		assert.Zero(t, *ordered, "the cloud was detaching it already")
	})
}

func TestAnUnmountOfAnIDThatTheJournalLostLeavesTheOtherContainersTheirVolume(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		mustMount(t, l, "data", "2")
		l.kill()
		synctest.Wait()
		clear(a.journal)
		l = a.start(t)
		time.Sleep(time.Minute)
		a.containerEnds("1")
		require.NoError(t, l.Unmount(within(t), "data", "1"))
		synctest.Wait()
		assert.Equal(t, "data", a.mounts["serial-1"].dir, "container 2 uses it")
		a.containerEnds("2")
	})
}

// The journal alone knows of the use: the device has gone, and the kernel shows nothing of it.
func TestAnAttachIsNotCalledOffWhileTheJournalNamesAUse(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.engineTakesMounts()
		l = a.start(t, func(c *Config) { c.Host = &blindHost{Host: c.Host, find: true, wait: true} })
		asked := detaches(w, a)
		ctx := limited(t, 3*time.Minute)
		_, err := l.Mount(ctx, "data", "2")
		require.Error(t, err)
		w.alter(func(d *disk) { d.Attachment.State = providers.AttachFailed })
		_, err = l.Mount(ctx, "data", "3")
		require.ErrorContains(t, err, "1 container(s) here use it")
		assert.Zero(t, *asked)
		w.alter(func(d *disk) { d.Attachment.State = providers.Attached })
		a.containerEnds("1")
	})
}

// shownDevice is a kernel that shows the device of every serial.
type shownDevice struct{ node.Host }

func (shownDevice) Find(_ context.Context, serial string) (mount.Device, error) {
	return mount.Device{Name: serial, Path: "/dev/" + serial, Major: 7, Minor: 9, Size: 1 << 30, Serial: serial}, nil
}

func TestAnAttachIsNotCalledOffWhileItsDeviceIsHere(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t, func(c *Config) { c.Host = shownDevice{c.Host} }), "data")
		synctest.Wait()
		w.alter(func(d *disk) {
			d.Attachment = providers.Attachment{Node: "a", State: providers.AttachFailed, Problem: "timed out"}
		})
		asked := detaches(w, a)
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "yet its device is here")
		assert.Zero(t, *asked)
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
	})
}

// oldAttach is a cloud whose Attach trusts its own reads: it calls the volume attached because an old answer says so.
type oldAttach struct{ *fakeProvider }

func (p *oldAttach) Attach(ctx context.Context, id, node string) error {
	all, err := p.List(ctx)
	if err != nil {
		return err
	}
	for _, vol := range all {
		if vol.ID == id && vol.HeldBy(p.machine.name) {
			return nil
		}
	}
	return p.fakeProvider.Attach(ctx, id, node)
}

func onOldReads(c *Config) { c.Provider = &oldAttach{c.Provider.(*fakeProvider)} }

func TestAfterADetachOldAnswersAreNotTakenForAnAttachment(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setLag(0)
		l := a.start(t, onOldReads)
		formatted(t, l, "data")
		mustMount(t, l, "data", "1")
		time.Sleep(time.Minute)
		w.setLag(5 * time.Second)
		w.setFault(at("host.WaitGone", failBefore)) // the detach is accepted; that the device has gone is not seen
		a.containerEnds("1")
		require.Error(t, l.Unmount(within(t), "data", "1"))
		w.setFault(calm)
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
	})
}

func TestAfterACalledOffAttachOldAnswersAreNotTakenForAnAttachment(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setLag(0)
		l := a.start(t, onOldReads)
		formatted(t, l, "data")
		time.Sleep(time.Minute + reconcileEvery/2) // no reconciliation is about to remember a detach of its own
		w.set(func() { w.arrival = time.Hour })
		w.setLag(5 * time.Second)
		_, err := l.Mount(limited(t, 2*time.Minute), "data", "1")
		require.ErrorContains(t, err, "the attach was cancelled")
		w.set(func() { w.arrival = 0 })
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
	})
}

// otherDevice shows the volume's device under another name from some moment on, and takes the old mount for the new device's.
type otherDevice struct {
	node.Host
	changed bool
}

func (h *otherDevice) Find(ctx context.Context, serial string) (mount.Device, error) {
	dev, err := h.Host.Find(ctx, serial)
	if h.changed {
		dev.Name = "other-" + dev.Name
	}
	return dev, err
}

func TestAMountOnADeviceThatWasReplacedIsMadeAnew(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		var h *otherDevice
		l := mounted(t, a.start(t, func(c *Config) { h = &otherDevice{Host: c.Host}; c.Host = h }), "data", "1")
		h.changed = true
		w.count()
		mustMount(t, l, "data", "2")
		assert.Positive(t, w.count()["Attach"], "the old mount was answered")
		a.containerEnds("1")
		a.containerEnds("2")
	})
}

func TestAPathThatSomebodyUnmountedIsMountedAnew(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.engineTakesMounts() // and the plugin goes on
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
		mustUnmount(t, l, "data", "1")
	})
}

func TestAVolumeMadeAnewDoesNotTakeTheUsesOfTheOneBefore(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t, takesAlways), b.start(t, takesAlways)
		mounted(t, la, "data", "1")
		mustMount(t, lb, "data", "2") // a is cut off, its disk is taken by force
		mustUnmount(t, lb, "data", "2")
		require.NoError(t, lb.Remove(within(t), "data"))
		require.NoError(t, lb.Create(within(t), "data", nil))
		time.Sleep(time.Minute)
		_, err := la.Mount(within(t), "data", "3")
		require.ErrorContains(t, err, "the volume was disk vol-1 when containers on this node mounted it, and is vol-2 now")
		synctest.Wait()
		assert.Equal(t, "vol-1", a.journal["data"].Volume)
		assert.Equal(t, []string{"1"}, a.journal["data"].IDs())
		a.containerEnds("1")
	})
}

func TestAVolumeThatTheEngineIsFillingIsNotReleased(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		_, err := l.Mount(within(t), "data", "1")
		require.NoError(t, err)
		for range 10 { // minutes of copy-up, before the container's own mount
			time.Sleep(time.Minute)
			w.mu.Lock()
			if s := a.mounts["serial-1"]; assert.NotNil(t, s, "it was unmounted under the engine") {
				s.activity.Writes++
			}
			w.mu.Unlock()
		}
		require.True(t, a.container("data", "1"))
		mustUnmount(t, l, "data", "1")
	})
}

func TestWhatIsReadForNobodyDoesNotKeepAVolumeWhoseContainersHaveNeverCome(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		_, err := made(t, a.start(t), "data").Mount(within(t), "data", "1")
		require.NoError(t, err) // and then the engine dies
		for range (unbackedTimeout + 3*reconcileEvery) / time.Second {
			time.Sleep(time.Second)
			w.mu.Lock()
			if s := a.mounts["serial-1"]; s != nil {
				s.activity.Reads++
			}
			w.mu.Unlock()
		}
		assert.Empty(t, w.holder("data"))
	})
}

func TestWhatTheKernelStillWritesForADeadContainerDoesNotKeepItsVolume(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1")
		time.Sleep(2 * reconcileEvery)
		a.containerEnds("1") // and no Unmount comes
		for range (unbackedTimeout + 3*reconcileEvery) / time.Second {
			time.Sleep(time.Second)
			w.mu.Lock()
			if s := a.mounts["serial-1"]; s != nil {
				s.activity.Writes++
			}
			w.mu.Unlock()
		}
		assert.Empty(t, w.holder("data"))
	})
}

func TestADiskThatHasAnotherNameNowIsNotAttachedBeforeItIsReleasedUnderTheOldOne(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		require.NoError(t, la.Create(within(t), "old", map[string]string{"reclaim": "retain"}))
		mustMount(t, la, "old", "1")
		time.Sleep(time.Minute)
		w.setFault(func(node, call string) fault { // the disk is detached, and a does not learn of it
			if node == "a" && call == "cloud.Detach" {
				return failAfter
			}
			return noFault
		})
		a.containerEnds("1")
		require.Error(t, la.Unmount(within(t), "old", "1"))
		require.NoError(t, lb.Remove(within(t), "old"))
		require.NoError(t, lb.Create(within(t), "new", map[string]string{"volume-id": "vol-1"}))
		_, err := la.Mount(within(t), "new", "2")
		require.ErrorContains(t, err, `this node has not yet released the disk vol-1, which was volume "old"`)
		w.setFault(calm)
		time.Sleep(2 * time.Minute)
		mustMount(t, la, "new", "2")
		time.Sleep(10 * time.Minute)
		assert.Equal(t, "a", w.holder("new"))
		mustUnmount(t, la, "new", "2")
	})
}
