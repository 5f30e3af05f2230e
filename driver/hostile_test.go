package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// contract: calls with the same volume and description make one snapshot
type snapOnce struct {
	*fakeProvider
	content *int
	snaps   map[string]int
}

func (s *snapOnce) Snapshot(_ context.Context, id string, spec providers.SnapshotSpec) (*providers.Snapshot, error) {
	if _, ok := s.snaps[id+spec.Description]; !ok {
		s.snaps[id+spec.Description] = *s.content
	}
	return &providers.Snapshot{ID: id + spec.Description, Volume: id, State: providers.SnapshotComplete}, nil
}

func TestTheSnapshotBeforeRemovalIsTheLatest(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		content := 1
		sp := &snapOnce{content: &content, snaps: map[string]int{}}
		l := a.start(t, func(c *Config) { sp.fakeProvider = c.Provider.(*fakeProvider); c.Provider = sp })
		require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "snapshot"}))
		w.setFault(at("cloud.Delete", failBefore))
		require.Error(t, l.Remove(within(t), "data"))
		w.setFault(calm)
		mustMount(t, l, "data", "1")
		time.Sleep(time.Hour)
		content = 2 // new data
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
		assert.Contains(t, slices.Collect(maps.Values(sp.snaps)), 2, "the disk is deleted, and the only snapshot is the old one")
	})
}

// An engine that was killed may take its mount of the plugin's directory away from the plugin that it has just started.
func TestWhatTheEngineDoesNotSeeIsNotAnswered(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		restarted := 0
		l := made(t, a.start(t, func(c *Config) { c.Restart = func() { restarted++ } }), "data")
		l.unseen.Store(true)
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "the engine does not see what the plugin mounts")
		require.ErrorContains(t, err, `(volume "data", vol-1, node a)`)
		assert.Equal(t, 1, restarted)
		if e := a.journal["data"]; e != nil {
			assert.Empty(t, e.Uses)
		}

		l.kill()
		l = a.start(t)
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
	})
}

func TestAPluginWhoseMountsTheEngineDoesNotSeeIsRestartedBeforeAnybodyNeedsIt(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		var restarted atomic.Int32
		l := a.start(t, func(c *Config) { c.Restart = func() { restarted.Add(1) } })
		time.Sleep(time.Hour)
		assert.Zero(t, restarted.Load())
		l.unseen.Store(true)
		time.Sleep(reconcileEvery + time.Second)
		assert.Positive(t, restarted.Load())
	})
}

func TestACloudThatDoesNotAnswerIsTheCause(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		time.Sleep(time.Hour) // what was asked before is forgotten
		w.setFault(at("cloud.Find", hang))
		_, err := l.Mount(within(t), "data", "1")
		require.Error(t, err)
		assert.Regexp(t, `^the cloud has not answered yet \(waited 25s\) \(volume "data", .*; what is mounted already is not affected`, err.Error())
		w.setFault(calm)
	})
}

func TestAMountBeginsTheGraceOfItsIDAnew(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		synctest.Wait()
		time.Sleep(time.Second)
		a.containerEnds("1") // the Unmount is lost
		time.Sleep(unbackedTimeout + reconcileEvery - 2*time.Second)
		_, err := l.Mount(within(t), "data", "1") // dockerd restarts: the same ID
		require.NoError(t, err)
		time.Sleep(2 * time.Second) // until runc binds it
		assert.True(t, a.container("data", "1"), "unmounted 2 s after Mount was answered")
		synctest.Wait()
		assert.NotNil(t, a.journal["data"])
		a.containerEnds("1")
	})
}

func TestTheMountOfADiskThatWasTakenAwayIsNotAnswered(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t, takesAlways), b.start(t, takesAlways)
		mounted(t, la, "data", "1")
		mustMount(t, lb, "data", "2") // a is cut off; its disk is taken by force
		require.Equal(t, "b", w.holder("data"))
		_, err := la.Mount(within(t), "data", "3") // a is back
		holder := w.holder("data")
		assert.False(t, err == nil && holder == "b", "a answered Mount with success, though b holds the disk")
		a.containerEnds("1")
		b.containerEnds("2")
	})
}

func TestAVolumeThatWasMadeAnewElsewhereIsNotTheOneMountedHere(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t, takesAlways), b.start(t, takesAlways)
		mounted(t, la, "data", "1")
		mustMount(t, lb, "data", "2")
		mustUnmount(t, lb, "data", "2")
		require.NoError(t, lb.Remove(within(t), "data"))
		require.NoError(t, lb.Create(within(t), "data", nil))
		_, err := la.Mount(within(t), "data", "3")
		synctest.Wait()
		assert.False(t, err == nil && a.mounts["serial-2"] == nil, "Mount answers with the deleted disk vol-1, not vol-2")
		a.containerEnds("1")
	})
}

type blindHost struct {
	node.Host
	find, wait bool
	hangDir    string
	hung       chan struct{}
}

func (h *blindHost) Find(ctx context.Context, s string) (mount.Device, error) {
	if h.find {
		return mount.Device{}, fmt.Errorf("%w: node missing", mount.ErrNoDevice) // mount/device.go:353, 463
	}
	return h.Host.Find(ctx, s)
}

func (h *blindHost) Wait(ctx context.Context, s string) (mount.Device, error) {
	if h.wait {
		<-ctx.Done()
		return mount.Device{}, mount.ErrNoDevice
	}
	return h.Host.Wait(ctx, s)
}

func (h *blindHost) Unstage(ctx context.Context, dir string) error {
	if h.hangDir == dir {
		<-h.hung
	}
	return h.Host.Unstage(ctx, dir)
}

func TestADeviceThatCannotBeSeenMayStillBeHeld(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		var h *blindHost
		l := mounted(t, a.start(t, func(c *Config) { h = &blindHost{Host: c.Host}; c.Host = h }), "data", "1")
		h.find = true
		_ = l.Unmount(within(t), "data", "1") // the container's mounts are not torn down yet
		assert.Equal(t, "a", w.holder("data"))
		a.containerEnds("1")
	})
}

func TestAnAttachThatOthersUseIsNotCalledOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.engineTakesMounts() // disable -f
		l = a.start(t, func(c *Config) { c.Host = &blindHost{Host: c.Host, wait: true} })
		_, err := l.Mount(limited(t, 100*time.Second), "data", "2")
		require.Error(t, err)
		assert.Equal(t, "a", w.holder("data"), "container 1 writes on it")
		a.containerEnds("1")
	})
}

func TestAnAttachThatFailedIsCleared(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		synctest.Wait()
		w.alter(func(d *disk) {
			d.Attachment = providers.Attachment{Node: "a", State: providers.AttachFailed, Problem: "no slot"}
		})
		var err error
		for range 100 { // Swarm, for 50 minutes
			if _, err = l.Mount(within(t), "data", "1"); err == nil {
				break
			}
			time.Sleep(5 * time.Second)
		}
		assert.NoError(t, err)
	})
}

func TestAnUnmountThatHangsKeepsNoOtherVolumeFromBeingReleased(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		hung := make(chan struct{})
		l := a.start(t, func(c *Config) { c.Host = &blindHost{Host: c.Host, hangDir: "bad", hung: hung} })
		synctest.Wait() // the look for strays at the start unmounts what nothing is known of
		require.NoError(t, l.Create(within(t), "bad", nil))
		require.NoError(t, l.Create(within(t), "good", nil))
		mustMount(t, l, "bad", "1")
		a.containerEnds("1")
		time.Sleep(time.Minute)
		mustMount(t, l, "good", "2")
		time.Sleep(10 * time.Minute)
		a.containerEnds("2") // its Unmount is lost
		time.Sleep(time.Hour)
		assert.Empty(t, w.holder("good"))
		close(hung)
		time.Sleep(time.Hour)
		assert.Empty(t, w.holder("good"))
	})
}

func TestACancelledMountDoesNotForgetThePath(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.setFault(func(_, c string) fault {
			if len(c) > 6 && c[:6] == "cloud." {
				return failBefore
			}
			if c == "host.IsStaged" {
				return failBefore
			}
			return noFault
		})
		_, _ = l.Mount(within(t), "data", "2")
		w.setFault(func(_, c string) fault {
			if len(c) > 6 && c[:6] == "cloud." {
				return failBefore
			}
			return noFault
		})
		p, err := l.Path(within(t), "data")
		require.NoError(t, err)
		assert.NotEmpty(t, p, "it is mounted")
		_, err = l.Mount(within(t), "data", "3")
		require.NoError(t, err, "it is mounted; the cloud is not needed")
		a.containerEnds("1")
	})
}

func TestAnUnmountThatHadToWaitTooLongIsCarriedOutLater(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.engineTakesMounts() // disable -f
		l = a.start(t)
		time.Sleep(time.Second)
		w.setFault(at("cloud.Find", hang))
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = l.Mount(within(t), "data", "2") })
		time.Sleep(time.Second)
		a.containerEnds("1")
		require.ErrorIs(t, l.Unmount(within(t), "data", "1"), volume.Unfinished)
		wg.Wait()
		w.setFault(calm)
		time.Sleep(queryTimeout) // the question that hangs is given up
		mustMount(t, l, "data", "3")
		mustUnmount(t, l, "data", "3")
		assert.Empty(t, w.holder("data"), "ID 1, unmounted by Docker, still holds it: %v", a.journal["data"])
	})
}

type lateAttach struct {
	*fakeProvider
	late bool
}

func (p *lateAttach) Attach(ctx context.Context, id, node string) error {
	if !p.late {
		return p.fakeProvider.Attach(ctx, id, node)
	}
	p.late = false
	go func() { time.Sleep(90 * time.Second); _ = p.fakeProvider.Attach(context.Background(), id, node) }()
	return errors.New("503, after the request was taken")
}

func TestAnAttachThatTakesEffectLateIsNoticed(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		p := &lateAttach{}
		l := a.start(t, func(c *Config) { p.fakeProvider = c.Provider.(*fakeProvider); c.Provider = p })
		lb := b.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		p.late = true
		_, err := l.Mount(within(t), "data", "1")
		require.Error(t, err)
		time.Sleep(24 * time.Hour)
		assert.Empty(t, w.holder("data"), "left attached to a node that forgot it")
		mustMount(t, lb, "data", "2")
	})
}

func TestAVolumeWhoseFormatCannotBeFinishedCanBeRemoved(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := made(t, a.start(t), "data")
		w.setFault(at("host.Format mkfs", crashBefore))
		_, err := l.Mount(within(t), "data", "1")
		require.Error(t, err)
		l.kill()
		w.setFault(func(_, c string) fault {
			if c == "host.Probe" || c == "host.Format" {
				return failBefore // the disk is bad, or mkfs is missing after an upgrade
			}
			return noFault
		})
		l = a.start(t)
		time.Sleep(time.Hour)
		assert.Empty(t, w.holder("data"), "never released")
		require.NoError(t, l.Remove(within(t), "data"))
		w.setFault(calm)
		time.Sleep(time.Hour)
	})
}

func TestADiskThatWasElsewhereIsNotCleared(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := made(t, a.start(t), "data")
		diesMounting(t, l, "host.Format mkfs", crashBefore)
		synctest.Wait()
		w.alter(func(d *disk) { // the operator moved the disk, put a backup on it and moved it back: no mark
			d.Attachment = providers.Attachment{}
			d.fstype, d.data = "ext4", true
		})
		mustMount(t, a.start(t), "data", "1")
		assert.Zero(t, w.disk("data").formats)
	})
}

func TestAHolderWithoutANameIsNotTakenForGone(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := made(t, a.start(t), "data")
		synctest.Wait()
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{State: providers.Detaching} })
		forced := false
		w.setFault(func(_, c string) fault {
			forced = forced || c == "cloud.Detach"
			return noFault
		})
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "still attached to another node: what state it is in is unclear: the cloud does not tell which node it is")
		require.ErrorContains(t, err, "; if that node is certainly dead, set TAKEOVER=always; blockvol")
		assert.False(t, forced)
		synctest.Wait()
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
	})
}

func TestAMountCancelledWhileTheJournalIsWrittenLeavesNoID(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		ctx, cancel := context.WithCancel(context.Background())
		w.setFault(func(_, c string) fault {
			if c == "journal.put" {
				cancel()
			}
			return noFault
		})
		_, err := l.Mount(ctx, "data", "2")
		require.Error(t, err)
		w.setFault(calm)
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Equal(t, []string{"1"}, a.journal["data"].IDs())
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"))
	})
}

func TestAMountCancelledBeforeItsIDIsWrittenWritesNothing(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		ctx, cancel := context.WithCancel(context.Background())
		written := false
		w.setFault(func(_, c string) fault {
			if c == "host.IsStaged" {
				cancel()
			}
			written = written || c == "journal.put"
			return noFault
		})
		_, err := l.Mount(ctx, "data", "2")
		require.Error(t, err)
		synctest.Wait()
		w.setFault(calm)
		assert.False(t, written, "what a crash would have left of it")
	})
}

func TestAForcedDetachWithoutEffectIsRepeated(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la := a.start(t)
		lb := b.start(t)
		mounted(t, la, "data", "1")
		a.powerOff()
		lost := true
		_ = lb
		lb.kill()
		lb = b.start(t, func(c *Config) { c.Provider = &deafDetach{c.Provider.(*fakeProvider), &lost} })
		var err error
		for range 20 {
			if _, err = lb.Mount(within(t), "data", "2"); err == nil {
				break
			}
			time.Sleep(5 * time.Second)
		}
		assert.NoError(t, err, "the forced detach had no effect the first time, and is never repeated")
	})
}

type deafDetach struct {
	*fakeProvider
	lost *bool
}

func (p *deafDetach) Detach(ctx context.Context, id, node string, force bool) error {
	if *p.lost {
		*p.lost = false
		return nil // taken by the cloud, and failed there
	}
	return p.fakeProvider.Detach(ctx, id, node, force)
}

func TestAVolumeHeldByAGoneNodeCanBeRemoved(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		mounted(t, la, "data", "1")
		a.powerOff()
		synctest.Wait()
		a.life = providers.Gone
		err := lb.Remove(within(t), "data")
		assert.NoError(t, err)
	})
}

func TestAnUnmountOfAnIDThatTheJournalLostReleasesTheVolume(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := a.start(t)
		lb := b.start(t)
		mounted(t, l, "data", "1")
		l.kill()
		synctest.Wait()
		clear(a.journal)
		l = a.start(t)
		time.Sleep(time.Minute)
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"), "Unmount returned and the disk is still held")
		_ = lb
	})
}

type slowDetach struct{ *fakeProvider }

func (p *slowDetach) Detach(ctx context.Context, id, node string, force bool) error {
	if force && pause.For(ctx, 60*time.Second) != nil { // the client retries: throttled, 503
		return ctx.Err()
	}
	return p.fakeProvider.Detach(ctx, id, node, force)
}

func TestAForcedDetachDoesNotOutliveItsEvidence(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la := a.start(t)
		lb := b.start(t, func(c *Config) { c.Provider = &slowDetach{c.Provider.(*fakeProvider)} })
		mounted(t, la, "data", "1")
		a.powerOff()
		var wg sync.WaitGroup
		wg.Go(func() { // Swarm
			for range 3 {
				_, _ = lb.Mount(within(t), "data", "2")
				time.Sleep(5 * time.Second)
			}
		})
		time.Sleep(20 * time.Second)
		a.powerOn()
		la = a.start(t)
		mustMount(t, la, "data", "3")
		time.Sleep(25 * time.Second)
		wg.Wait()
		time.Sleep(time.Minute)
		assert.Equal(t, "a", w.holder("data"), "taken by force from a running node that has it mounted")
		a.containerEnds("3")
		time.Sleep(10 * time.Minute)
	})
}

func TestARestartAfterTheDiskWasPulledDropsNoIDs(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		// the node is missing from /dev for the new life, or sysfs answers EIO: "no device", though the kernel writes on it
		a.start(t, func(c *Config) { c.Host = &blindHost{Host: c.Host, find: true} })
		time.Sleep(5 * time.Minute)
		assert.Equal(t, "a", w.holder("data"), "nobody called anything; the container still runs")
		a.containerEnds("1")
	})
}

func TestAVolumeWhoseContainerDiedUnseenCanBeRemoved(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1") // while the engine is down: no Unmount comes
		require.NoError(t, l.Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
		synctest.Wait()
		assert.Empty(t, a.journal)
	})
}

func TestAVolumeOfWhichTheKernelCannotTellIsNotRemoved(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.journal["data"].Device = mount.Device{}
		l = a.start(t, func(c *Config) { c.Host = &blindHost{Host: c.Host, find: true} })
		require.ErrorContains(t, l.Remove(within(t), "data"), "in use by 1 container(s)")
		a.containerEnds("1")
	})
}

func TestASecondContainerDoesNotWaitAfterARestart(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.engineTakesMounts()
		l = a.start(t)
		begin := time.Now()
		mustMount(t, l, "data", "2")
		assert.Less(t, time.Since(begin), time.Second)
		mustUnmount(t, l, "data", "1")
		mustUnmount(t, l, "data", "2")
	})
}

func TestAPluginKilledInAnAttachDoesNotHoldUpTheVolume(t *testing.T) {
	for where, restart := range map[string]func(t *testing.T, a, b *machine) *life{
		"here":          func(t *testing.T, a, _ *machine) *life { return a.start(t) },
		"on other node": func(t *testing.T, a, b *machine) *life { a.start(t); return b.start(t) },
	} {
		t.Run(where, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				w.arrival = 5 * time.Second
				l := made(t, a.start(t), "data")
				time.Sleep(time.Minute)
				diesMounting(t, l, "cloud.Attach", crashAfter)
				begin := time.Now()
				l = restart(t, a, b)
				mustMount(t, l, "data", "2")
				assert.Less(t, time.Since(begin), 3*time.Second+w.arrival)
				mustUnmount(t, l, "data", "2")
			})
		})
	}
}

// A device that was pulled is not found, while the kernel may hold its file system still.
func TestAnAttachIsNotCalledOffWhileTheKernelHoldsItsFileSystem(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		require.Error(t, l.Unmount(within(t), "data", "1"), "a process has it still")
		w.alter(func(d *disk) { d.Attachment.State = providers.AttachFailed })
		_, err := l.Mount(within(t), "data", "2")
		require.Error(t, err)
		assert.Equal(t, "a", w.holder("data"))
		a.containerEnds("1")
		time.Sleep(5 * time.Minute)
		assert.Empty(t, w.holder("data"))
	})
}

func TestAnAttachThatIsCalledOffIsKnownToALaterLife(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		w.arrival = time.Hour
		w.setFault(at("cloud.Detach", crashAfter))
		_, err := l.Mount(limited(t, 2*controller.AttachTimeout), "data", "1")
		require.Error(t, err)
		require.True(t, l.dead.Load())
		synctest.Wait()
		assert.True(t, a.journal["data"].Releasing)
		l.kill()
		w.setFault(calm)
		a.start(t)
		time.Sleep(time.Minute)
	})
}

func TestAnAttachAfterOneThatWasCalledOffIsNoRelease(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		time.Sleep(time.Second) // so that the attach is not called off at the moment of a reconciliation, which would finish the release
		w.arrival = time.Hour
		_, err := l.Mount(limited(t, 2*controller.AttachTimeout), "data", "1")
		require.ErrorContains(t, err, "the attach was cancelled")
		synctest.Wait()
		require.True(t, a.journal["data"].Releasing)
		w.setFault(at("cloud.Attach", crashBefore))
		_, err = l.Mount(within(t), "data", "2")
		require.Error(t, err)
		synctest.Wait()
		assert.False(t, a.journal["data"].Releasing)
		l.kill()
		w.setFault(calm)
		a.start(t)
		time.Sleep(time.Minute)
	})
}

// slowToDetach is a cloud that takes a detach at once, and carries it out later, whatever becomes of who asked.
type slowToDetach struct{ *fakeProvider }

func (p slowToDetach) Detach(_ context.Context, id, node string, force bool) error {
	time.AfterFunc(providers.MaxStale/2, func() {
		_ = (&fakeProvider{&life{machine: p.machine}}).Detach(context.Background(), id, node, force)
	})
	return nil
}

func TestADetachThatWasAskedForBeforeACrashDoesNotHitTheNextMount(t *testing.T) {
	t.Run("at once", func(t *testing.T) { lateDetachAfterACrash(t, func() {}) })
	t.Run("after this life has had it detached too", func(t *testing.T) { lateDetachAfterACrash(t, synctest.Wait) })
}

func lateDetachAfterACrash(t *testing.T, pause func()) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t, func(c *Config) { c.Provider = slowToDetach{c.Provider.(*fakeProvider)} }), "data", "1")
		a.containerEnds("1")
		w.setFault(at("host.WaitGone", crashBefore))
		require.Error(t, l.Unmount(within(t), "data", "1"))
		l.kill()
		w.setFault(calm)
		l = a.start(t)
		pause()
		mustMount(t, l, "data", "2")
		time.Sleep(time.Minute)
		assert.Equal(t, "a", w.holder("data"))
		a.containerEnds("2")
	})
}

// slowStates is a cloud that answers questions about nodes after a while, of which the request waits a part to be sent.
type slowStates struct {
	*fakeProvider
	waits, takes []time.Duration // of one question after another; the last goes for all that follow
}

func next(of *[]time.Duration) time.Duration {
	is := (*of)[0]
	if len(*of) > 1 {
		*of = (*of)[1:]
	}
	return is
}

func (p *slowStates) NodeState(ctx context.Context, node string) (providers.NodeState, error) {
	time.Sleep(next(&p.waits))
	providers.NoteAsked(ctx, time.Now())
	state, err := p.fakeProvider.NodeState(ctx, node)
	time.Sleep(next(&p.takes))
	return state, err
}

func TestEvidenceOfTheHolderIsFreshWhenItsVolumeIsTaken(t *testing.T) {
	for name, c := range map[string]struct {
		waits, takes []time.Duration
		taken        bool
	}{
		"an answer that took too long is asked for again": {[]time.Duration{0}, []time.Duration{20 * time.Second, 0}, false},
		"no answer comes in time":                         {[]time.Duration{0}, []time.Duration{4 * time.Second}, false},
		"answers take a while":                            {[]time.Duration{0}, []time.Duration{3 * time.Second}, true},
		"the question had to wait":                        {[]time.Duration{15 * time.Second}, []time.Duration{0}, true},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				mounted(t, a.start(t), "data", "1")
				lb := b.start(t, func(cfg *Config) {
					cfg.Provider = &slowStates{cfg.Provider.(*fakeProvider), c.waits, c.takes}
				})
				a.powerOff()
				var other sync.WaitGroup
				var err error
				other.Go(func() { _, err = lb.Mount(within(t), "data", "2") })
				if !c.taken && len(c.takes) > 1 {
					time.Sleep(time.Second)
					a.powerOn() // and runs again when the answer comes
					mustMount(t, a.start(t), "data", "3")
				}
				other.Wait()
				if !c.taken {
					require.Error(t, err)
					assert.NotContains(t, err.Error(), "TAKEOVER=stopped", "which it is")
					assert.Equal(t, "a", w.holder("data"))
					a.containerEnds("3")
					return
				}
				require.NoError(t, err)
				assert.Equal(t, "b", w.holder("data"))
			})
		})
	}
}

// lateForce is a cloud that carries a forced detach out when it was waiting for so long, if it may still be sent.
type lateForce struct {
	*slowStates
	wait time.Duration
}

func (p *lateForce) Detach(ctx context.Context, id, node string, force bool) error {
	if force && pause.For(ctx, p.wait) != nil {
		return ctx.Err()
	}
	return p.fakeProvider.Detach(ctx, id, node, force)
}

func TestAForcedDetachIsBoundedFromWhenTheEvidenceWasAskedFor(t *testing.T) {
	for wait, sent := range map[time.Duration]bool{forceTimeout - 3*time.Second: true, forceTimeout - time.Second: false} {
		scene(t, func(t *testing.T, w *world, a, b *machine) {
			mounted(t, a.start(t), "data", "1")
			lb := b.start(t, func(c *Config) {
				c.Provider = &lateForce{&slowStates{c.Provider.(*fakeProvider), []time.Duration{0}, []time.Duration{2 * time.Second}}, wait}
			})
			a.powerOff()
			_, err := lb.Mount(within(t), "data", "2")
			assert.Equal(t, sent, err == nil, "%v", err)
			if !sent {
				assert.Equal(t, "a", w.holder("data"))
			}
		})
	}
}

func TestASlowAnswerAboutTheHolderDoesNotKeepAVolumeFromBeingRemoved(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, a.start(t), "data", "1")
		lb := b.start(t, func(c *Config) {
			c.Provider = &slowStates{c.Provider.(*fakeProvider), []time.Duration{0}, []time.Duration{5 * time.Second, 0}}
		})
		a.powerOff()
		require.NoError(t, lb.Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
	})
}

// busyAttaching is a cloud that detaches nothing whose attach has not ended.
type busyAttaching struct{ *fakeProvider }

func (p busyAttaching) Detach(ctx context.Context, id, node string, force bool) error {
	w := p.machine.world
	w.mu.Lock()
	attaching := time.Now().Before(w.disks[id].present)
	w.mu.Unlock()
	if attaching {
		return providers.ErrBusy
	}
	return p.fakeProvider.Detach(ctx, id, node, force)
}

func TestWhatIsLeftOfAnAttachHoldsUpAnotherNodeNoLonger(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		busy := func(c *Config) { c.Provider = busyAttaching{c.Provider.(*fakeProvider)} }
		w.arrival = 10 * time.Second
		l := made(t, a.start(t, busy), "data")
		time.Sleep(time.Minute)
		diesMounting(t, l, "cloud.Attach", crashAfter)
		a.start(t, busy)
		time.Sleep(w.arrival + time.Second)
		assert.Empty(t, w.holder("data"))
		mustMount(t, b.start(t), "data", "2")
		b.containerEnds("2")
	})
}

// slowFirstFind is a kernel that is slow to answer the first question.
type slowFirstFind struct {
	node.Host
	asked atomic.Bool
}

func (h *slowFirstFind) Find(ctx context.Context, serial string) (mount.Device, error) {
	if !h.asked.Swap(true) {
		time.Sleep(10 * time.Second)
	}
	return h.Host.Find(ctx, serial)
}

func TestWhatALifeBeforeHasLeftIsLookedAfterOnceItsDeviceIsKnown(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		diesMounting(t, l, "host.Stage", crashBefore)
		a.start(t, func(c *Config) { c.Host = &slowFirstFind{Host: c.Host} })
		assert.Equal(t, "a", w.holder("data"))
		time.Sleep(restartTTL + time.Second)
		assert.Empty(t, w.holder("data"))
	})
}
