package driver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustMount(t *testing.T, l *life, name, id string) {
	t.Helper()
	path, err := l.Mount(within(t), name, id)
	require.NoError(t, err)
	require.Equal(t, "/published/"+dirOf(name), path)
	require.True(t, l.machine.container(name, id), "the path shows no file system")
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

func TestSecondContainerKeepsTheVolumeMounted(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
		mustMount(t, l, "data", "1")
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"))
	})
}

func TestTheJournalSurvivesKill9(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
		a.containerEnds("1") // and no Unmount comes
		time.Sleep(staleAfter / 2)
		assert.Equal(t, "a", w.holder("data"), "the grace is not over")
		time.Sleep(staleAfter)
		assert.Empty(t, w.holder("data"))
		synctest.Wait()
		assert.Empty(t, a.journal)
	})
}

// An engine that was killed starts again: it starts the plugin, takes the plugin's mounts away, and only then ends the
// containers, for which no Unmount comes. Their successors wait elsewhere.
func TestContainersThatEndWithTheirEngineAreNoticedSoon(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
		a.powerOff()
		a.powerOn()
		a.start(t)
		time.Sleep(2 * reconcileEvery)
		assert.Empty(t, w.holder("data"), "nothing on this node uses it after the reboot")
	})
}

func TestDisabledByForceTheContainerKeepsItsDisk(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
		l.kill()
		synctest.Wait()
		for _, s := range a.mounts { // dockerd unmounts all under the plugin's folder
			s.dir = ""
		}
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorIs(t, err, errUnfinished)
		require.ErrorContains(t, err, "being attached")
		attached := w.disk("data").present
		time.Sleep(5 * time.Second) // as Swarm does
		mustMount(t, l, "data", "2")
		assert.Equal(t, attached, w.disk("data").present, "the retry attached anew")
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Equal(t, []string{"2"}, a.journal["data"].IDs, "the ID of the failed call must not stand")
		mustUnmount(t, l, "data", "2")
		assert.Empty(t, w.holder("data"))
	})
}

func TestWhatNobodyComesBackForIsReleased(t *testing.T) {
	for _, arrival := range []time.Duration{30 * time.Second, 40 * time.Second, 80 * time.Second, time.Hour} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			w.arrival = arrival
			l := a.start(t)
			require.NoError(t, l.Create(within(t), "data", nil))
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := l.Mount(ctx, "data", "1")
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, err := l.Mount(ctx, "data", "1")
		require.ErrorContains(t, err, "no device has arrived within 1m30s")
		assert.Empty(t, w.holder("data"))
	})
}

func TestAnAttachOfAnEarlierLifeThatNeverEndsIsCalledOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		synctest.Wait()
		for _, d := range w.disks {
			d.Attachment = providers.Attachment{Node: "a", State: providers.Attaching}
			d.present = time.Now().Add(time.Hour)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, err := l.Mount(ctx, "data", "1")
		require.ErrorContains(t, err, "the attach was called off")
		assert.Empty(t, w.holder("data"))
		mustMount(t, l, "data", "2")
	})
}

func TestMountWaitsForTheHolderToLetGo(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		require.NoError(t, la.Create(within(t), "data", nil))
		mustMount(t, la, "data", "1")
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
	for _, policy := range []Takeover{TakeoverNever, TakeoverStopped} {
		scene(t, func(t *testing.T, w *world, a, b *machine) {
			la, lb := a.start(t), b.start(t, func(c *Config) { c.Takeover = policy })
			require.NoError(t, la.Create(within(t), "data", nil))
			mustMount(t, la, "data", "1")
			for range 10 {
				_, err := lb.Mount(within(t), "data", "2")
				require.ErrorIs(t, err, errUnfinished)
				assert.Regexp(t, `^held by node a \(running: machine a is running\)`, err.Error(), "the cause comes first")
				require.ErrorContains(t, err, "stop what uses it on node a")
			}
			assert.Equal(t, "a", w.holder("data"))
		})
	}
}

func TestTakeoverFollowsThePolicy(t *testing.T) {
	for _, c := range []struct {
		policy Takeover
		life   providers.Life
		taken  bool
	}{
		{TakeoverNever, providers.Stopped, false},
		{TakeoverNever, providers.Gone, false},
		{TakeoverStopped, providers.Running, false},
		{TakeoverStopped, providers.Unclear, false},
		{TakeoverStopped, providers.Stopped, true},
		{TakeoverStopped, providers.Gone, true},
		{TakeoverAlways, providers.Running, true},
		{TakeoverAlways, providers.Unclear, true},
	} {
		t.Run(string(c.policy)+" "+string(c.life), func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la, lb := a.start(t), b.start(t, func(cfg *Config) { cfg.Takeover = c.policy })
				require.NoError(t, la.Create(within(t), "data", nil))
				mustMount(t, la, "data", "1")
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
		mustUnmount(t, l, "data", "1")
		synctest.Wait()
		for _, d := range w.disks {
			d.fstype = "" // the cloud gives another disk, or the data is gone
		}
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
		for _, d := range w.disks {
			d.fstype = ""
		}
		_, err := l.Mount(within(t), "copy", "1")
		require.ErrorContains(t, err, "blank but was formatted before")
	})
}

func TestAFormatWhoseMarkWasLostIsNotRepeated(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
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
		assert.Equal(t, "ext4", w.disk("data").Record[recFormatted])
	})
}

func TestAFormatThatWasCutShortIsFinished(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, w *world, a, b *machine){
		"by the retry":            func(t *testing.T, w *world, a, b *machine) { mustMount(t, a.start(t), "data", "1") },
		"before the disk is left": func(t *testing.T, w *world, a, b *machine) { a.start(t); mustMount(t, b.start(t), "data", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				l := a.start(t)
				require.NoError(t, l.Create(within(t), "data", nil))
				synctest.Wait()
				w.setFault(at("host.Format mkfs", crashBefore))
				_, err := l.Mount(within(t), "data", "1")
				require.Error(t, err)
				l.kill()
				synctest.Wait()
				w.setFault(calm)
				for _, d := range w.disks {
					d.half = true
				}
				next(t, w, a, b)
				assert.False(t, w.disk("data").half)
				assert.Equal(t, 1, w.disk("data").formats)
			})
		})
	}
}

func TestAFormatOfAnEarlierBootIsNotFinished(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		synctest.Wait()
		w.setFault(at("host.Format mkfs", crashBefore))
		_, err := l.Mount(within(t), "data", "1")
		require.Error(t, err)
		a.powerOff()
		w.setFault(calm)
		for _, d := range w.disks {
			d.half = true // or what another node has written meanwhile
		}
		a.powerOn()
		_, err = a.start(t).Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "left as it is")
	})
}

func TestADiskWithForeignContentsIsRefused(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		synctest.Wait()
		for _, d := range w.disks {
			d.foreign = "crypto_LUKS"
		}
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
			require.ErrorIs(t, err, ErrNotFound)
			require.NoError(t, l.Create(within(t), "again", map[string]string{"volume-id": id}))
			mustMount(t, l, "again", "2")
			assert.Equal(t, 1, w.disk("again").formats)
			assert.Equal(t, mount.LayoutData, w.disk("again").Record[recLayout], "the layout never changes")
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
		require.NoError(t, la.Create(within(t), "data", nil))
		mustMount(t, la, "data", "1")
		require.ErrorContains(t, la.Remove(within(t), "data"), "in use by 1 container(s)")
		require.ErrorContains(t, lb.Remove(within(t), "data"), "in use on node a")
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
				require.NotErrorIs(t, err, ErrNotFound)
			}
		}
		_, err := l.Get(within(t), "unheard of")
		require.Error(t, err)
		require.NotErrorIs(t, err, ErrNotFound)
		synctest.Wait()
		w.setFault(func(_, call string) fault { return failBefore })
		_, err = l.Get(within(t), "known")
		require.NoError(t, err, "this node has seen it")
		_, err = l.Get(within(t), "unheard of")
		require.ErrorIs(t, err, ErrUnsure)
	})
}

func TestReadsDoNotWaitForAMount(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = 20 * time.Second
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = l.Mount(within(t), "data", "1") })
		time.Sleep(time.Second)
		begin := time.Now()
		info, err := l.Get(within(t), "data")
		require.NoError(t, err)
		assert.Equal(t, "being attached: waiting for the device", info.Status["state"])
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		mustMount(t, l, "data", "1")
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
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
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		synctest.Wait()
		l.host = shrunk{l.host}
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "bytes where the cloud says")
		assert.Zero(t, w.disk("data").formats)
	})
}

// shrunk is a host whose devices are smaller than they should be.
type shrunk struct{ Host }

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
		require.NoError(t, la.Create(within(t), "data", nil))
		mustMount(t, la, "data", "1")
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
		assert.InDelta(t, took("took"), took("acquire")+took("attach")+took("format")+took("mount"), float64(4*time.Millisecond), "rounded")
		assert.GreaterOrEqual(t, took("acquire"), 7*time.Second, "the holder was waited for")
	})
}
