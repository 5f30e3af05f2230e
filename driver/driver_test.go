package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// scene runs a story in fake time, on a world with two machines, and checks at its end that nothing forbidden happened.
func scene(t *testing.T, story func(t *testing.T, w *world, a, b *machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { play(t, newWorld(1), story) })
}

func play(t *testing.T, w *world, story func(t *testing.T, w *world, a, b *machine)) {
	t.Helper()
	a, b := w.machine("a"), w.machine("b")
	defer func() {
		for _, m := range w.machines {
			if m.current != nil {
				require.NoError(t, m.current.Close(context.Background()))
			}
		}
		assert.Empty(t, w.violations)
	}()
	story(t, w, a, b)
}

// within gives a call the time that Docker gives it.
func within(t *testing.T) context.Context { return limited(t, 25*time.Second) }

func limited(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func mustMount(t *testing.T, l *life, name, id string) {
	t.Helper()
	path, err := l.Mount(within(t), name, id)
	require.NoError(t, err)
	require.Equal(t, "/published/"+node.DirOf(name), path)
	require.True(t, l.machine.container(name, id), "the path shows no file system")
}

// made creates a volume by a plugin that has just started.
func made(t *testing.T, l *life, name string) *life {
	t.Helper()
	require.NoError(t, l.Create(within(t), name, nil))
	return l
}

// mounted is made, for a container that uses the volume.
func mounted(t *testing.T, l *life, name, id string) *life {
	t.Helper()
	made(t, l, name)
	mustMount(t, l, name, id)
	return l
}

// diesMounting has the plugin die of a fault while it mounts the volume "data", or right after it has failed. What comes then has no
// faults.
func diesMounting(t *testing.T, l *life, call string, f fault) {
	t.Helper()
	l.machine.world.setFault(at(call, f))
	_, err := l.Mount(within(t), "data", "1")
	require.Error(t, err)
	l.kill()
	l.machine.world.setFault(calm)
}

func takesAlways(c *Config) { c.Takeover = controller.TakeoverAlways }

// messages counts the lines of a log that say so.
func messages(log *logtest.Hook, text string) (n int) {
	for _, e := range log.AllEntries() {
		if e.Message == text {
			n++
		}
	}
	return n
}

func mustUnmount(t *testing.T, l *life, name, id string) {
	t.Helper()
	l.machine.containerEnds(id)
	require.NoError(t, l.Unmount(within(t), name, id))
}

func TestAVolumeFollowsItsServiceFromNodeToNode(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		require.NoError(t, la.Create(within(t), "data", map[string]string{"size": "2"}))
		assert.Empty(t, w.holder("data"), "Create must not attach")
		mustMount(t, la, "data", "1")
		assert.Equal(t, "a", w.holder("data"))
		mustUnmount(t, la, "data", "1")
		assert.Empty(t, w.holder("data"), "the disk must be free when Unmount returns")
		mustMount(t, lb, "data", "2")
		assert.Equal(t, "b", w.holder("data"))
		mustUnmount(t, lb, "data", "2")
		assert.Equal(t, 1, w.disk("data").formats)
		require.NoError(t, lb.Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
		synctest.Wait()
		assert.Empty(t, a.journal)
		synctest.Wait()
		assert.Empty(t, b.journal)
	})
}

func TestAVolumeThatTheKernelHoldsSaysSoUntilItIsReleased(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		require.True(t, a.container("data", "copy"))
		a.containerEnds("1")
		require.ErrorIs(t, l.Unmount(within(t), "data", "1"), mount.ErrBusy)
		problem := func() any {
			info, err := l.Get(within(t), "data")
			require.NoError(t, err)
			return info.Status["problem"]
		}
		assert.Contains(t, problem(), "the kernel holds a file system on /dev/")
		time.Sleep(5 * time.Minute)
		assert.Contains(t, problem(), "the kernel holds a file system on /dev/")
		assert.Equal(t, "a", w.holder("data"), "never detached under its user")

		a.containerEnds("copy")
		time.Sleep(time.Minute)
		assert.Nil(t, problem())
		assert.Empty(t, w.holder("data"))
	})
}

func TestSecondContainerKeepsTheVolumeMounted(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "1")
		assert.Equal(t, "a", w.holder("data"))
		mustUnmount(t, l, "data", "1") // twice
		assert.Equal(t, "a", w.holder("data"))
		mustUnmount(t, l, "data", "2")
		assert.Empty(t, w.holder("data"))
	})
}

func TestTheSameMountIDTwiceIsOneUse(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		mustMount(t, l, "data", "1")
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"))
	})
}

func TestTheJournalSurvivesKill9(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		l = a.start(t)
		path, err := l.Path(within(t), "data")
		require.NoError(t, err)
		assert.Equal(t, "/published/data", path)
		time.Sleep(time.Hour)
		assert.Equal(t, "a", w.holder("data"), "a container still uses it")
		require.Error(t, l.Remove(within(t), "data"))
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"))
	})
}

func TestAContainerThatDiedUnseenIsNoticed(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1")
		a.containerEnds("1") // and no Unmount comes
		time.Sleep(unbackedTimeout / 2)
		assert.Equal(t, "a", w.holder("data"), "the grace is not over")
		time.Sleep(unbackedTimeout)
		assert.Empty(t, w.holder("data"))
		synctest.Wait()
		assert.Empty(t, a.journal)
	})
}

// An engine that was killed starts again: it starts the plugin, takes the plugin's mounts away, and only then ends the
// containers, for which no Unmount comes. Their successors wait elsewhere.
func TestContainersThatEndWithTheirEngineAreNoticedSoon(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.engineTakesMounts()
		a.start(t)
		time.Sleep(5 * time.Second)
		assert.Equal(t, "a", w.holder("data"), "the container goes on")
		a.containerEnds("1")
		begin := time.Now()
		lb := b.start(t)
		mustMount(t, lb, "data", "2")
		assert.Less(t, time.Since(begin), 10*time.Second)
		synctest.Wait()
		assert.Empty(t, a.journal)
		mustUnmount(t, lb, "data", "2")
	})
}

func TestAContainerGoesOnWhileThePluginIsDisabled(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.engineTakesMounts()
		a.start(t)
		time.Sleep(time.Hour)
		assert.Equal(t, "a", w.holder("data"))
		a.containerEnds("1")
		time.Sleep(reconcileEvery + time.Second)
		assert.Empty(t, w.holder("data"))
	})
}

func TestMountIDsOfAnEarlierBootAreVoid(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1")
		a.powerOff()
		a.powerOn()
		a.start(t)
		time.Sleep(2 * reconcileEvery)
		assert.Empty(t, w.holder("data"), "nothing on this node uses it after the reboot")
	})
}

func TestDisabledByForceTheContainerKeepsItsDisk(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.engineTakesMounts()
		l = a.start(t)
		time.Sleep(time.Hour)
		assert.Equal(t, "a", w.holder("data"), "the container writes on")
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"))
	})
}

func TestAVolumeLeftAttachedByALostJournalIsReleased(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "used", nil))
		require.NoError(t, l.Create(within(t), "unused", nil))
		mustMount(t, l, "used", "1")
		mustMount(t, l, "unused", "2")
		l.kill()
		a.containerEnds("2")
		synctest.Wait()
		clear(a.journal)
		l = a.start(t)
		time.Sleep(3 * reconcileEvery)
		assert.Equal(t, "a", w.holder("used"))
		assert.Empty(t, w.holder("unused"))
		a.containerEnds("1")
		require.NoError(t, l.Unmount(within(t), "used", "1")) // an ID that the journal does not know
		time.Sleep(3 * reconcileEvery)
		assert.Empty(t, w.holder("used"))
	})
}

func TestASlowAttachGoesOnAndARetryJoinsIt(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = 40 * time.Second
		l := made(t, a.start(t), "data")
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorIs(t, err, volume.Unfinished)
		require.ErrorContains(t, err, "being attached")
		attached := w.disk("data").present
		time.Sleep(5 * time.Second) // as Swarm does
		mustMount(t, l, "data", "2")
		assert.Equal(t, attached, w.disk("data").present, "the retry attached anew")
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Equal(t, []string{"2"}, a.journal["data"].IDs(), "the ID of the failed call must not stand")
		mustUnmount(t, l, "data", "2")
		assert.Empty(t, w.holder("data"))
	})
}

func TestWhatNobodyComesBackForIsReleased(t *testing.T) {
	for _, arrival := range []time.Duration{30 * time.Second, 40 * time.Second, 80 * time.Second, time.Hour} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			w.arrival = arrival
			l := made(t, a.start(t), "data")
			_, err := l.Mount(within(t), "data", "1")
			require.Error(t, err)
			time.Sleep(5 * time.Minute)
			assert.Empty(t, w.holder("data"))
			synctest.Wait()
			assert.Empty(t, a.journal)
			synctest.Wait()
			assert.Empty(t, l.volumes)
		})
	}
}

func TestACancelledMountLeavesNothingHeld(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = 3 * time.Second
		l := made(t, a.start(t), "data")
		_, err := l.Mount(limited(t, time.Second), "data", "1")
		require.Error(t, err)
		time.Sleep(time.Minute)
		assert.Empty(t, w.holder("data"))
		synctest.Wait()
		assert.Empty(t, a.journal)
	})
}

func TestAnAttachThatNeverEndsIsCalledOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = time.Hour
		l := made(t, a.start(t), "data")
		_, err := l.Mount(limited(t, 2*time.Minute), "data", "1")
		require.ErrorContains(t, err, "no device has arrived within 1m30s")
		assert.Empty(t, w.holder("data"))
	})
}

func TestAnAttachOfAnEarlierLifeThatNeverEndsIsCalledOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		synctest.Wait()
		w.alter(func(d *disk) {
			d.Attachment = providers.Attachment{Node: "a", State: providers.Attaching}
			d.present = time.Now().Add(time.Hour)
		})
		_, err := l.Mount(limited(t, 2*time.Minute), "data", "1")
		require.ErrorContains(t, err, "the attach was cancelled")
		assert.Empty(t, w.holder("data"))
		mustMount(t, l, "data", "2")
	})
}

func TestMountWaitsForTheHolderToLetGo(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		mounted(t, la, "data", "1")
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(10 * time.Second)
			mustUnmount(t, la, "data", "1")
		})
		mustMount(t, lb, "data", "2")
		wg.Wait()
		assert.Equal(t, "b", w.holder("data"))
	})
}

func TestALiveHolderIsNeverRobbed(t *testing.T) {
	for _, policy := range []controller.Takeover{controller.TakeoverNever, controller.TakeoverStopped} {
		scene(t, func(t *testing.T, w *world, a, b *machine) {
			la, lb := a.start(t), b.start(t, func(c *Config) { c.Takeover = policy })
			mounted(t, la, "data", "1")
			for range 10 {
				_, err := lb.Mount(within(t), "data", "2")
				require.ErrorIs(t, err, volume.Unfinished)
				assert.Regexp(t, `^still attached to node a: machine a is running \(waited`, err.Error(), "the cause comes first")
				require.ErrorContains(t, err, "stop its container on node a")
			}
			assert.Equal(t, "a", w.holder("data"))
		})
	}
}

func TestTakeoverFollowsThePolicy(t *testing.T) {
	for _, c := range []struct {
		policy controller.Takeover
		life   providers.Life
		taken  bool
	}{
		{controller.TakeoverNever, providers.Stopped, false},
		{controller.TakeoverNever, providers.Gone, false},
		{controller.TakeoverStopped, providers.Running, false},
		{controller.TakeoverStopped, providers.Unclear, false},
		{controller.TakeoverStopped, providers.Stopped, true},
		{controller.TakeoverStopped, providers.Gone, true},
		{controller.TakeoverAlways, providers.Running, true},
		{controller.TakeoverAlways, providers.Unclear, true},
	} {
		t.Run(string(c.policy)+" "+string(c.life), func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la, lb := a.start(t), b.start(t, func(cfg *Config) { cfg.Takeover = c.policy })
				mounted(t, la, "data", "1")
				if c.life == providers.Stopped || c.life == providers.Gone {
					a.powerOff()
				}
				synctest.Wait()
				a.life = c.life
				_, err := lb.Mount(within(t), "data", "2")
				if c.taken {
					require.NoError(t, err)
					assert.Equal(t, "b", w.holder("data"))
				} else {
					require.Error(t, err)
					assert.Equal(t, "a", w.holder("data"))
				}
			})
		})
	}
}

func TestABlankDiskIsFormattedOnceOnly(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		mustUnmount(t, l, "data", "1")
		synctest.Wait()
		w.alter(func(d *disk) { d.fstype = "" }) // the cloud gives another disk, or the data is gone
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "blank but was formatted before")
		assert.Equal(t, 1, w.disk("data").formats)
		time.Sleep(time.Minute)
		assert.Empty(t, w.holder("data"), "a failed Mount leaves nothing held")
	})
}

func TestACopyOfASnapshotIsNeverFormatted(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "copy", map[string]string{"snapshot": "snap-1"}))
		synctest.Wait()
		w.alter(func(d *disk) { d.fstype = "" })
		_, err := l.Mount(within(t), "copy", "1")
		require.ErrorContains(t, err, "blank but was formatted before")
	})
}

func TestAFormatWhoseMarkWasLostIsNotRepeated(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		once := sync.OnceValue(func() fault { return crashBefore })
		synctest.Wait()
		w.setFault(func(_, call string) fault {
			if call == "cloud.Mark" {
				f := once()
				once = func() fault { return noFault }
				return f
			}
			return noFault
		})
		_, err := l.Mount(within(t), "data", "1")
		require.Error(t, err)
		l.kill()
		l = a.start(t)
		mustMount(t, l, "data", "1")
		assert.Equal(t, 1, w.disk("data").formats)
		assert.Equal(t, "ext4", w.disk("data").Record[volume.KeyFormatted])
	})
}

func TestAFormatThatWasCutShortIsFinished(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, w *world, a, b *machine){
		"by the retry":            func(t *testing.T, w *world, a, b *machine) { mustMount(t, a.start(t), "data", "1") },
		"before the disk is left": func(t *testing.T, w *world, a, b *machine) { a.start(t); mustMount(t, b.start(t), "data", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				l := made(t, a.start(t), "data")
				synctest.Wait()
				w.setFault(at("host.Format mkfs", crashBefore))
				_, err := l.Mount(within(t), "data", "1")
				require.Error(t, err)
				l.kill()
				synctest.Wait()
				w.setFault(calm)
				w.alter(func(d *disk) { d.half = true })
				next(t, w, a, b)
				assert.False(t, w.disk("data").half)
				assert.Equal(t, 1, w.disk("data").formats)
			})
		})
	}
}

func TestAFormatOfAnEarlierBootIsNotFinished(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		synctest.Wait()
		w.setFault(at("host.Format mkfs", crashBefore))
		_, err := l.Mount(within(t), "data", "1")
		require.Error(t, err)
		a.powerOff()
		w.setFault(calm)
		w.alter(func(d *disk) { d.half = true }) // or what another node has written meanwhile
		a.powerOn()
		_, err = a.start(t).Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "left as it is")
	})
}

func TestADiskWithForeignContentsIsRefused(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		synctest.Wait()
		w.alter(func(d *disk) { d.foreign = "crypto_LUKS" })
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "crypto_LUKS")
		require.ErrorContains(t, err, "left as it is")
	})
}

func TestReclaim(t *testing.T) {
	t.Run("retain keeps the disk, and volume-id brings it back", func(t *testing.T) {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := a.start(t)
			require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "retain"}))
			mustMount(t, l, "data", "1")
			mustUnmount(t, l, "data", "1")
			id := w.disk("data").ID
			require.NoError(t, l.Remove(within(t), "data"))
			_, err := l.Get(within(t), "data")
			require.ErrorIs(t, err, volume.NotFound)
			require.NoError(t, l.Create(within(t), "again", map[string]string{"volume-id": id}))
			mustMount(t, l, "again", "2")
			assert.Equal(t, 1, w.disk("again").formats)
			assert.Equal(t, mount.LayoutData, w.disk("again").Record[volume.KeyLayout], "the layout never changes")
		})
	})
	t.Run("snapshot takes one first", func(t *testing.T) {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := a.start(t)
			require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "snapshot"}))
			mustMount(t, l, "data", "1")
			mustUnmount(t, l, "data", "1")
			synctest.Wait()
			w.setFault(at("cloud.Snapshot", failBefore))
			require.Error(t, l.Remove(within(t), "data"))
			require.NotNil(t, w.disk("data"), "without a snapshot nothing may be deleted")
			synctest.Wait()
			w.setFault(calm)
			require.NoError(t, l.Remove(within(t), "data"))
			assert.Nil(t, w.disk("data"))
			synctest.Wait()
			assert.Len(t, w.snapshots, 1)
		})
	})
}

func TestRemoveRefusesWhileAnyNodeUsesTheVolume(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		mounted(t, la, "data", "1")
		require.ErrorContains(t, la.Remove(within(t), "data"), "in use by container of-1 on this node")
		err := lb.Remove(within(t), "data")
		require.ErrorContains(t, err, "in use on node a")
		require.ErrorIs(t, err, volume.Held)
		require.NotNil(t, w.disk("data"))
		require.NoError(t, la.Remove(within(t), "never existed"))
	})
}

func TestGetNeverSaysNoSuchVolumeForACloudThatIsAway(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "mounted", nil))
		require.NoError(t, l.Create(within(t), "known", nil))
		mustMount(t, l, "mounted", "1")
		time.Sleep(time.Hour)
		synctest.Wait()
		w.setFault(func(_, call string) fault { return hang })
		for _, name := range []string{"mounted", "known"} {
			info, err := l.Get(within(t), name)
			if name == "mounted" {
				require.NoError(t, err)
				assert.Equal(t, "/published/mounted", info.Mountpoint)
			} else if err != nil {
				require.NotErrorIs(t, err, volume.NotFound)
			}
		}
		_, err := l.Get(within(t), "unheard of")
		require.Error(t, err)
		require.NotErrorIs(t, err, volume.NotFound)
		synctest.Wait()
		w.setFault(func(_, call string) fault { return failBefore })
		_, err = l.Get(within(t), "known")
		require.NoError(t, err, "this node has seen it")
		_, err = l.Get(within(t), "unheard of")
		require.ErrorIs(t, err, volume.Unsure)
	})
}

func TestReadsDoNotWaitForAMount(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = 20 * time.Second
		l := made(t, a.start(t), "data")
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = l.Mount(within(t), "data", "1") })
		time.Sleep(time.Second)
		begin := time.Now()
		info, err := l.Get(within(t), "data")
		require.NoError(t, err)
		assert.Equal(t, "waiting-for-device", info.Status["phase"])
		assert.Equal(t, "being attached: waiting for the device", info.Status["message"])
		assert.Equal(t, begin.Add(-time.Second).UTC().Format(time.RFC3339), info.Status["since"])
		_, err = l.Path(within(t), "data")
		require.NoError(t, err)
		_, err = l.List(within(t))
		require.NoError(t, err)
		assert.Zero(t, time.Since(begin))
		wg.Wait()
	})
}

func TestCallersOfOneMountShareItsFailure(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = time.Second
		l := made(t, a.start(t), "data")
		attaches := 0
		synctest.Wait()
		w.setFault(func(_, call string) fault {
			switch call {
			case "cloud.Attach":
				attaches++
			case "host.Probe":
				return failBefore
			}
			return noFault
		})
		var wg sync.WaitGroup
		for _, id := range []string{"1", "2", "3"} {
			wg.Go(func() {
				_, err := l.Mount(within(t), "data", id)
				assert.ErrorIs(t, err, errInjected)
			})
		}
		wg.Wait()
		assert.Equal(t, 1, attaches)
	})
}

func TestABusyUnmountIsTriedAgain(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		err := l.Unmount(within(t), "data", "1") // the container's mounts are still there
		require.ErrorContains(t, err, "stays attached")
		assert.Equal(t, "a", w.holder("data"))
		a.containerEnds("1")
		time.Sleep(2 * reconcileEvery)
		assert.Empty(t, w.holder("data"))
	})
}

func TestAJournalThatCannotBeWrittenLosesNothing(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		require.NoError(t, l.Create(within(t), "other", nil))
		mustMount(t, l, "data", "1")
		synctest.Wait()
		w.setFault(at("journal.put", failBefore))
		_, err := l.Mount(within(t), "other", "2")
		require.ErrorIs(t, err, errInjected)
		assert.Empty(t, w.holder("other"), "nothing is attached that nobody would remember")
		_, err = l.Mount(within(t), "data", "3")
		require.ErrorIs(t, err, errInjected)
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"), "an Unmount is carried out all the same")
	})
}

func TestAVolumeInAnotherZoneIsAnErrorThatNamesBoth(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		b.zone = "z2"
		la, lb := a.start(t), b.start(t)
		require.NoError(t, la.Create(within(t), "data", nil))
		_, err := lb.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "z1")
		require.ErrorContains(t, err, "z2")
		synctest.Wait()
		assert.Len(t, w.disks, 1)
	})
}

func TestTwoNodesThatCreateOneNameGetOneVolume(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.latency = time.Second
		la, lb := a.start(t), b.start(t)
		var wg sync.WaitGroup
		for _, l := range []*life{la, lb} {
			wg.Go(func() { assert.NoError(t, l.Create(within(t), "data", nil)) })
		}
		wg.Wait()
		synctest.Wait()
		assert.Len(t, w.disks, 1)
		err := la.Create(within(t), "data", map[string]string{"fstype": "xfs", "size": "500MiB"})
		require.ErrorContains(t, err, "fstype=ext4, not xfs")
	})
}

func TestADeviceSmallerThanTheCloudSaysIsRefused(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t, func(c *Config) { c.Host = shrunk{c.Host} }), "data")
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "bytes where the cloud says")
		assert.Zero(t, w.disk("data").formats)
	})
}

// shrunk is a host whose devices are smaller than they should be.
type shrunk struct{ node.Host }

func (s shrunk) Wait(ctx context.Context, serial string) (mount.Device, error) {
	dev, err := s.Host.Wait(ctx, serial)
	dev.Size /= 2
	return dev, err
}

func TestErrorsAreFoundThroughTheirSentences(t *testing.T) {
	err := sentences(errors.Join(errors.New("a"), nil, errors.New("b")))
	assert.EqualError(t, err, "a; b")
}

func TestTheLogSaysHowLongEachStepOfAMountTook(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		log, logged := logtest.NewNullLogger()
		la, lb := a.start(t), b.start(t, func(c *Config) { c.Log = log })
		mounted(t, la, "data", "1")
		time.AfterFunc(7*time.Second, func() { mustUnmount(t, la, "data", "1") })
		begin := time.Now()
		mustMount(t, lb, "data", "2")
		mounted := logged.LastEntry()
		require.Equal(t, "Volume mounted", mounted.Message)
		took := func(step string) time.Duration {
			d, ok := mounted.Data[step].(time.Duration)
			require.True(t, ok, "%s in %v", step, mounted.Data)
			return d
		}
		assert.Equal(t, time.Since(begin).Round(time.Millisecond), took("took"))
		var sum time.Duration
		for key := range mounted.Data {
			if d, is := mounted.Data[key].(time.Duration); is && key != "took" {
				sum += d
			}
		}
		assert.InDelta(t, took("took"), sum, float64(4*time.Millisecond), "rounded")
		assert.GreaterOrEqual(t, took("waiting_for_holder"), 6*time.Second, "the holder was waited for")
	})
}

// refusing is a cloud that refuses attaches, for a reason that it gives.
type refusing struct {
	providers.Provider
	reason error
}

func (r refusing) Attach(context.Context, string, string) error { return r.reason }

func TestWhyAnAttachKeepsFailingIsSaid(t *testing.T) {
	for _, reason := range []error{
		fmt.Errorf("%w: the cloud does not show this node", providers.ErrBusy),
		fmt.Errorf("%w to a node that no read shows", providers.ErrHeld),
	} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			log, logged := logtest.NewNullLogger()
			l := made(t, a.start(t, func(c *Config) { c.Provider, c.Log = refusing{c.Provider, reason}, log }), "data")
			_, err := l.Mount(within(t), "data", "1")
			require.ErrorIs(t, err, volume.Unfinished)
			assert.Regexp(t, "^"+reason.Error()+`: being attached \(waited 25s\) \(volume "data", vol-1, node a\); try again; blockvol keeps trying$`, err.Error())
			info, err := l.Get(within(t), "data")
			require.NoError(t, err)
			assert.Equal(t, "attached", info.Status["state"])
			assert.Equal(t, "attaching", info.Status["phase"])
			assert.Equal(t, reason.Error()+": being attached", info.Status["message"])
			time.Sleep(idleTTL + 5*time.Second)
			last := logged.LastEntry()
			require.Equal(t, "Work that its caller did not wait for has failed", last.Message)
			require.ErrorContains(t, last.Data[logrus.ErrorKey].(error), reason.Error()+": being attached, nobody waits for the volume any more")
			waits := 0
			for _, e := range logged.AllEntries() {
				if e.Message == "The volume cannot be attached yet" {
					assert.Equal(t, logrus.InfoLevel, e.Level)
					assert.Equal(t, reason.Error()+": being attached", e.Data["why"])
					waits++
				}
			}
			assert.Equal(t, 1, waits, "it is logged at once, and once")
		})
	}
}

// numberedRefusals is a cloud whose refusals name the request, so that no two are the same.
type numberedRefusals struct {
	*fakeProvider
	n int
}

func (p *numberedRefusals) Attach(context.Context, string, string) error {
	p.n++
	return fmt.Errorf("%w (request %d)", providers.ErrBusy, p.n)
}

func TestARefusalThatNeverReadsTheSameIsLoggedOnceAMinute(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		log, logged := logtest.NewNullLogger()
		l := made(t, a.start(t, func(c *Config) {
			c.Provider, c.Log = &numberedRefusals{fakeProvider: c.Provider.(*fakeProvider)}, log
		}), "data")
		_, err := l.Mount(limited(t, 10*time.Minute-time.Second), "data", "1")
		require.ErrorContains(t, err, "(request 1", "the caller hears the last one")
		lines := messages(logged, "The volume cannot be attached yet")
		assert.LessOrEqual(t, lines, 10)
		assert.GreaterOrEqual(t, lines, 8)
	})
}

func TestARefusalIsForgottenWhenTheAttachIsAccepted(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		h := l.obtain("data")
		h.Step(volume.Step{Phase: volume.Attaching})
		h.Refused(providers.ErrBusy)
		assert.Equal(t, "busy: being attached", h.words())
		h.Step(volume.Step{Phase: volume.WaitingForDevice})
		assert.Equal(t, "being attached: waiting for the device", h.words())
		l.drop(h)
	})
}

func TestAMountThatWaitsForAnotherNodeSaysSoAtOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		log, logged := logtest.NewNullLogger()
		la, lb := a.start(t), b.start(t, func(c *Config) { c.Log = log })
		synctest.Wait() // b has not seen it free
		mounted(t, la, "data", "1")
		time.Sleep(time.Minute) // what b saw of the volume at its start is forgotten
		begin := time.Now()
		_, err := lb.Mount(within(t), "data", "2")
		require.ErrorIs(t, err, volume.Unfinished)
		i := slices.IndexFunc(logged.AllEntries(), func(e *logrus.Entry) bool { return e.Message == "The volume cannot be attached yet" })
		require.GreaterOrEqual(t, i, 0, "nothing was logged")
		e := logged.AllEntries()[i]
		assert.Equal(t, logrus.InfoLevel, e.Level)
		assert.Equal(t, begin, e.Time)
		assert.Equal(t, "data", e.Data["volume"])
		assert.Equal(t, "still attached to node a: machine a is running", e.Data["why"])
	})
}

func TestTookCoversTheWaitForAnotherCall(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		log, logged := logtest.NewNullLogger()
		l := made(t, a.start(t, func(c *Config) { c.Log = log }), "data")
		go l.attempt("data", volume.Reconciling, func(*handle) { time.Sleep(7 * time.Second) })
		synctest.Wait()
		mustMount(t, l, "data", "1")
		require.Equal(t, "Volume mounted", logged.LastEntry().Message)
		assert.Equal(t, 7*time.Second, logged.LastEntry().Data["took"])
	})
}

func TestAnObserverHearsHowLongEachPhaseTook(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = 7 * time.Second
		var e events
		l := made(t, a.start(t, e.observe, func(c *Config) { c.Host = &slow{Host: c.Host, format: 3 * time.Second} }), "data")
		mustMount(t, l, "data", "1")
		phases := map[string]time.Duration{} // by volume and phase
		for _, p := range take[volume.PhaseEnded](&e) {
			phases[p.Volume+" "+string(p.Phase)] += p.Took
		}
		for phase, took := range map[volume.Phase]time.Duration{volume.WaitingForDevice: 7 * time.Second, volume.Formatting: 3 * time.Second, volume.Mounting: 0} {
			heard, ended := phases["data "+string(phase)]
			assert.True(t, ended, phase)
			assert.Equal(t, took, heard, phase)
		}
		assert.NotContains(t, phases, "data ", "no phase is none")
	})
}
