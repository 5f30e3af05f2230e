package driver

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

func TestAnUnmountOfWhatIsNotKnownIsSuccessAtOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		require.NoError(t, l.Unmount(within(t), "never existed", "1"))
		w.setFault(at("host.IsStaged", hang))
		var other sync.WaitGroup
		other.Go(func() { _, _ = l.Mount(within(t), "data", "2") })
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, l.Unmount(within(t), "data", "unknown"))
		assert.Zero(t, time.Since(begin), "it waited for a call that it has nothing to do with")
		w.setFault(calm)
		other.Wait()
		a.containerEnds("1")
	})
}

func TestTheSameUnmountTwiceAtOnceIsOneRelease(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1")
		w.set(func() { w.latency = 5 * time.Second })
		w.count()
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() { assert.NoError(t, l.Unmount(within(t), "data", "1")) })
		}
		both.Wait()
		assert.Empty(t, w.holder("data"))
		assert.Equal(t, 1, w.count()["Detach"])
	})
}

// Between the answer to Mount and the container's own mount the kernel shows nothing of it.
func TestAContainerThatIsStartingKeepsTheVolumeWhenAnotherEnds(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		_, err := l.Mount(within(t), "data", "2")
		require.NoError(t, err)
		mustUnmount(t, l, "data", "1")
		assert.True(t, a.container("data", "2"), "it was unmounted")
		mustUnmount(t, l, "data", "2")
	})
}

func TestWhatAnUnmountWaitsForIsShown(t *testing.T) {
	for call, says := range map[string]string{
		"host.Unstage":  "being unmounted",
		"host.WaitFree": "still used by a process of this node",
		"cloud.Detach":  "being detached from this node",
	} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := mounted(t, a.start(t), "data", "1")
				a.containerEnds("1")
				w.setFault(at(call, hang))
				err := l.Unmount(limited(t, 10*time.Second), "data", "1")
				require.ErrorIs(t, err, volume.Unfinished)
				assert.Equal(t, says, status(t, l, "data")["message"])
				require.ErrorContains(t, err, says+" (waited 10s)")
				w.setFault(calm)
			})
		})
	}
}

func TestADetachThatFailsIsTheAnswer(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1")
		w.setFault(at("cloud.Detach", failBefore))
		require.ErrorIs(t, l.Unmount(within(t), "data", "1"), errInjected)
		w.setFault(calm)
	})
}

// busyCloud never has time to detach a disk, and calls each one held.
type busyCloud struct{ *fakeProvider }

func (busyCloud) Detach(context.Context, string, string, bool) error { return providers.ErrBusy }

// busyAtFirst refuses each kind of change at first.
type busyAtFirst struct {
	*fakeProvider
	forced, deletes, always int
}

func (p *busyAtFirst) Detach(ctx context.Context, id, node string, force bool) error {
	if force && p.forced > 0 {
		p.forced--
		return providers.ErrBusy
	}
	return p.fakeProvider.Detach(ctx, id, node, force)
}

func (p *busyAtFirst) Delete(ctx context.Context, id string) error {
	if p.deletes > 0 {
		p.deletes -= p.always
		return providers.ErrHeld
	}
	return p.fakeProvider.Delete(ctx, id)
}

func TestARefusalForNowIsAskedAgain(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, b.start(t), "data", "1")
		b.powerOff()
		l := a.start(t, func(c *Config) {
			c.Provider = &busyAtFirst{fakeProvider: c.Provider.(*fakeProvider), forced: 1, deletes: 2, always: 1}
		})
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
		require.NoError(t, l.Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
	})
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := made(t, a.start(t, func(c *Config) { c.Provider = &busyAtFirst{fakeProvider: c.Provider.(*fakeProvider), deletes: 1} }), "data")
		require.ErrorIs(t, l.Remove(within(t), "data"), providers.ErrHeld, "it is asked for as long as answers may be old")
	})
}

// The end of the plugin ends what waits for another party.
func TestCloseEndsEveryWait(t *testing.T) {
	for name, c := range map[string]struct {
		before func(t *testing.T, w *world, a, b *machine)
		call   func(ctx context.Context, l *life) error
	}{
		"for a detach that the cloud has no time for": {
			func(t *testing.T, _ *world, a, _ *machine) {
				mounted(t, a.start(t, func(c *Config) { c.Provider = busyCloud{c.Provider.(*fakeProvider)} }), "data", "1")
				a.containerEnds("1")
			},
			func(ctx context.Context, l *life) error { return l.Unmount(ctx, "data", "1") },
		},
		"for a disk that is deleted when its detach is over": {
			func(t *testing.T, w *world, a, _ *machine) {
				l := mounted(t, a.start(t), "data", "1")
				w.set(func() { w.departure = time.Hour })
				mustUnmount(t, l, "data", "1")
			},
			func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") },
		},
		"for the cloud to show what was just made": {
			func(t *testing.T, w *world, a, _ *machine) {
				w.setLag(time.Minute)
				made(t, a.start(t), "data")
				time.Sleep(2 * time.Second)
			},
			func(ctx context.Context, l *life) error { _, err := l.Mount(ctx, "data", "1"); return err },
		},
		"for another node": {
			func(t *testing.T, _ *world, a, b *machine) {
				mounted(t, b.start(t), "data", "0")
				a.start(t)
			},
			func(ctx context.Context, l *life) error { _, err := l.Mount(ctx, "data", "1"); return err },
		},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				c.before(t, w, a, b)
				require.Error(t, c.call(limited(t, 5*time.Second), a.current))
				require.NoError(t, a.current.Close(limited(t, 10*time.Second)))
			})
		})
	}
}

func TestCloseSaysWhatItLeavesUnfinished(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t, func(c *Config) { c.Host = &slow{Host: c.Host, format: time.Minute} }), "data")
		_, err := l.Mount(limited(t, time.Second), "data", "1")
		require.Error(t, err)
		require.ErrorContains(t, l.Close(limited(t, time.Second)), "work is left unfinished for the next start")
	})
}

func TestAMountRightAfterAnUnmountDoesNotWait(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		mustUnmount(t, l, "data", "1")
		begin := time.Now()
		mustMount(t, l, "data", "2")
		assert.Less(t, time.Since(begin), time.Second)
		mustUnmount(t, l, "data", "2")
	})
}

func TestAMountThatWaitsForAnUnmountWaitsNoLonger(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.set(func() { w.departure = time.Second })
		begin := time.Now()
		time.AfterFunc(4*time.Second, func() { a.containerEnds("process") })
		require.True(t, a.container("data", "process")) // is torn down slowly
		var other sync.WaitGroup
		other.Go(func() { mustUnmount(t, l, "data", "1") })
		time.Sleep(time.Second)
		_, err := l.Mount(within(t), "data", "2")
		require.NoError(t, err)
		assert.Less(t, time.Since(begin), 4*time.Second+providers.MaxStale, "what may be old was waited out, though the device was seen to go")
		other.Wait()
		require.NoError(t, l.Unmount(within(t), "data", "2"))
	})
}

// The operator's word counts, and not how long the cloud takes to say that the holder runs.
func TestUnderAlwaysAVolumeIsTakenHoweverSlowlyTheCloudAnswers(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, b.start(t), "data", "1")
		l := a.start(t, func(c *Config) {
			c.Takeover = controller.TakeoverAlways
			c.Provider = &slowStates{c.Provider.(*fakeProvider), []time.Duration{0}, []time.Duration{2 * forceTimeout}}
		})
		_, err := l.Mount(limited(t, 2*time.Minute), "data", "2")
		require.NoError(t, err)
		assert.Equal(t, "a", w.holder("data"))
		b.containerEnds("1")
		require.NoError(t, l.Unmount(within(t), "data", "2"))
	})
}

func TestADiskThatAnotherNodeTookDuringAReboot(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, a.start(t), "data", "1")
		a.powerOff()
		mustMount(t, b.start(t), "data", "2")
		a.powerOn()
		log, logged := logtest.NewNullLogger()
		a.start(t, func(c *Config) { c.Log = log })
		time.Sleep(time.Hour)
		assert.Zero(t, reports(logged, notSeen, ""), "this node does not hold it")
		synctest.Wait()
		assert.Empty(t, a.journal)
		assert.Equal(t, "b", w.holder("data"))
		b.containerEnds("2")
	})
}

func TestStraysAreLookedForAgainIfTheCloudDoesNotAnswer(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1").kill()
		a.containerEnds("1")
		synctest.Wait()
		clear(a.journal)
		w.setFault(at("cloud.List", failBefore))
		a.start(t)
		time.Sleep(time.Minute)
		w.setFault(calm)
		time.Sleep(3 * reconcileEvery)
		assert.Empty(t, w.holder("data"))
	})
}

func TestTheGraceOfUnusedMountIDsBeginsWhenTheLastContainerIsGone(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1") // it restarts slowly, with its mount ID
		time.Sleep(unbackedTimeout - reconcileEvery)
		require.True(t, a.container("data", "1"))
		time.Sleep(2 * reconcileEvery)
		a.containerEnds("1")
		time.Sleep(unbackedTimeout - reconcileEvery)
		assert.Equal(t, "a", w.holder("data"))
		require.True(t, a.container("data", "1"), "it was unmounted too soon")
		mustUnmount(t, l, "data", "1")
	})
}

func TestWhetherTheMountIsThereCannotBeToldSoItsUsersStay(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		_, err := l.Mount(within(t), "data", "1")
		require.NoError(t, err)
		w.setFault(at("host.IsStaged", failBefore))
		time.Sleep(unbackedTimeout - reconcileEvery)
		assert.True(t, a.container("data", "1"), "it was unmounted")
		w.setFault(calm)
		mustUnmount(t, l, "data", "1")
	})
}

func TestNothingIsGrownThatIsNotMounted(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1").kill()
		a.engineTakesMounts()
		l := a.start(t)
		path, err := l.Path(within(t), "data")
		require.NoError(t, err)
		assert.Empty(t, path)
		time.Sleep(time.Hour)
		assert.Zero(t, w.grows())
		a.containerEnds("1")
	})
}

func TestWhatADetachOfAnotherNodeTakesIsSaid(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		lb := mounted(t, b.start(t), "data", "1")
		w.set(func() { w.departure = time.Minute })
		mustUnmount(t, lb, "data", "1")
		_, err := a.start(t).Mount(limited(t, holderGrace-time.Second), "data", "2")
		require.ErrorContains(t, err, "being detached from node b")
	})
}

// What is to be done about a holder depends on the policy and on what is known of it.
func TestTheAdviceAboutAHolderFitsIt(t *testing.T) {
	for _, c := range []struct {
		policy controller.Takeover
		life   providers.Life
		advice string
	}{
		{controller.TakeoverNever, providers.Running, "; stop its container on node b; if that node is unreachable, unplug machine b; blockvol"},
		{controller.TakeoverNever, providers.Unclear, "; if node b is certainly dead, unplug machine b, or set TAKEOVER=always; blockvol"},
		{controller.TakeoverNever, providers.Stopped, "; TAKEOVER=stopped would take it over; blockvol"},
		{controller.TakeoverStopped, providers.Running, "; stop its container on node b; if that node is unreachable, unplug machine b; blockvol"},
		{controller.TakeoverStopped, providers.Unclear, "; if node b is certainly dead, unplug machine b, or set TAKEOVER=always; blockvol"},
		{controller.TakeoverAlways, providers.Running, "; try again; blockvol"},
	} {
		scene(t, func(t *testing.T, w *world, a, b *machine) {
			mounted(t, b.start(t), "data", "1")
			w.set(func() { b.life = c.life })
			l := a.start(t, func(cfg *Config) { cfg.Takeover = c.policy })
			_, err := l.Mount(limited(t, holderGrace-time.Second), "data", "2")
			require.ErrorContains(t, err, c.advice, "%s, %s", c.policy, c.life)
			w.set(func() { b.life = providers.Running })
			b.containerEnds("1")
		})
	}
}

func TestWhoWaitsForAVolumeThatIsBusyHearsWithWhat(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, l *life) error{
		"create":  func(ctx context.Context, l *life) error { return l.Create(ctx, "data", nil) },
		"mount":   func(ctx context.Context, l *life) error { _, err := l.Mount(ctx, "data", "2"); return err },
		"remove":  func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") },
		"unmount": func(ctx context.Context, l *life) error { return l.Unmount(ctx, "data", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				w.arrival = 40 * time.Second
				l := made(t, a.start(t), "data")
				_, err := l.Mount(limited(t, time.Second), "data", "1")
				require.ErrorIs(t, err, volume.Unfinished)
				err = call(limited(t, 10*time.Second), l)
				require.ErrorIs(t, err, volume.Unfinished)
				require.ErrorContains(t, err, "being attached: waiting for the device (waited 11s)")
			})
		})
	}
}

// A call that its caller gave up ends by itself, once.
func TestASlowCreateOrRemoveGoesOnAndARetryJoinsIt(t *testing.T) {
	for call, c := range map[string]func(ctx context.Context, l *life) error{
		"cloud.Create": func(ctx context.Context, l *life) error { return l.Create(ctx, "data", nil) },
		"cloud.Delete": func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") },
	} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := a.start(t)
				if call == "cloud.Delete" {
					made(t, l, "data")
				}
				w.setFault(at(call, hang))
				require.ErrorIs(t, c(within(t), l), volume.Unfinished)
				w.setFault(calm)
				require.ErrorIs(t, c(within(t), l), volume.Unfinished, "the first has not ended")
				require.NoError(t, c(limited(t, changeTimeout), l))
				assert.Equal(t, call == "cloud.Create", w.disk("data") != nil)
				require.NoError(t, l.Create(within(t), "data", nil))
				mustMount(t, l, "data", "1")
				mustUnmount(t, l, "data", "1")
			})
		})
	}
}

// without hides that the cloud has snapshots.
type without struct{ providers.Provider }

func TestAVolumeToBeRemovedByASnapshotStaysWhereThereAreNone(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t, func(c *Config) { c.Provider = without{c.Provider} })
		require.ErrorContains(t, l.Create(within(t), "data", map[string]string{"reclaim": "snapshot"}), "this provider has no snapshots: use delete or retain")
		made(t, l, "data")
		w.alter(func(d *disk) { d.Record[volume.KeyReclaim] = string(volume.ReclaimSnapshot) })
		require.EqualError(t, l.Remove(within(t), "data"), `this provider has no snapshots: the volume is not removed, since its reclaim policy is to take a snapshot first (volume "data", vol-1, node a)`)
		assert.NotNil(t, w.disk("data"))
	})
}

func TestARemoveGivesUpOnADetachThatDoesNotEnd(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.set(func() { w.departure = time.Hour })
		mustUnmount(t, l, "data", "1")
		err := l.Remove(within(t), "data")
		require.ErrorContains(t, err, "being detached from this node (waited 25s)")
		err = l.Remove(limited(t, 2*controller.DetachTimeout), "data")
		require.ErrorContains(t, err, `the cloud has not detached the disk within 2m0s (volume "data", vol-1, node a)`)
		assert.NotNil(t, w.disk("data"))
	})
}

// Its journal is lost, and it has not looked for strays.
func TestARemoveReleasesWhatThisNodeHoldsUnknowingly(t *testing.T) {
	for _, used := range []bool{false, true} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			mounted(t, a.start(t), "data", "1").kill()
			if !used {
				a.containerEnds("1")
			}
			synctest.Wait()
			clear(a.journal)
			w.setFault(at("cloud.List", failBefore))
			l := a.start(t)
			err := l.Remove(within(t), "data")
			if used {
				require.ErrorContains(t, err, `in use by container of-1 on this node (volume "data"`)
				assert.NotNil(t, w.disk("data"))
				a.containerEnds("1")
			} else {
				require.NoError(t, err)
				assert.Nil(t, w.disk("data"))
			}
			w.setFault(calm)
		})
	}
}

func TestAVolumeWithTwoDevicesIsNotRemoved(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1")
		w.set(func() { a.ambiguous = time.Now().Add(time.Minute) })
		require.ErrorIs(t, l.Remove(within(t), "data"), mount.ErrAmbiguousDevice)
		assert.NotNil(t, w.disk("data"))
	})
}

func TestAFormatThatWasCutShortIsNotFinishedForARemove(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		diesMounting(t, l, "host.Format mkfs", crashBefore)
		require.NoError(t, a.start(t).Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
		assert.Zero(t, w.figures["formats"])
	})
}

// A release that failed is over when the volume is used again.
func TestAVolumeThatIsUsedAgainHasNoProblemFromItsRelease(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1")
		w.setFault(at("host.Unstage", failBefore))
		require.ErrorIs(t, l.Unmount(within(t), "data", "1"), errInjected)
		assert.Contains(t, status(t, l, "data")["problem"], errInjected.Error())
		w.setFault(calm)
		mustMount(t, l, "data", "2")
		assert.NotContains(t, status(t, l, "data"), "problem")
		mustUnmount(t, l, "data", "2")
	})
}

// What is written after it is in memory only until then.
func TestAnAttachIsInTheJournalThoughItsFirstWriteFailed(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		w.setFault(at("journal.put", failBefore))
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorIs(t, err, errInjected)
		diesMounting(t, l, "cloud.Attach", crashAfter)
		synctest.Wait()
		assert.NotNil(t, a.journal["data"], "the next life does not know of the disk")
		a.start(t)
		time.Sleep(time.Minute)
		assert.Empty(t, w.holder("data"))
	})
}

func TestAContainerThatStaysKeepsTheVolumeWhoseDiskWasAttachedAgain(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1").kill()
		a.engineTakesMounts()
		a.journal["data"].Ours = false // as in the journal of an earlier version
		l := a.start(t)
		synctest.Wait()
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} }) // pulled
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
		assert.Equal(t, "a", w.holder("data"), "container 1 has not ended")
		mustUnmount(t, l, "data", "1")
		assert.Empty(t, w.holder("data"))
	})
}

// It holds no data. What stands on it is in the way of no release, and the log says what to do.
func TestAFormatThatCannotBeFinishedIsToldAndTheDiskIsLetGo(t *testing.T) {
	for _, call := range []string{"cloud.Find", "host.Find", "host.Probe", "host.Format"} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := made(t, a.start(t), "data")
				diesMounting(t, l, "host.Format mkfs", crashBefore)
				log, logged := logtest.NewNullLogger()
				a.start(t, func(c *Config) { c.Log = log })
				synctest.Wait()
				calls := 0
				w.setFault(func(_, is string) fault {
					if is != call {
						return noFault
					}
					if calls++; call == "host.Find" && calls != 2 { // the first asks who uses it
						return noFault
					}
					return failBefore
				})
				time.Sleep(time.Minute)
				w.setFault(calm)
				time.Sleep(2 * reconcileEvery)
				assert.Empty(t, w.holder("data"))
				told := 0
				for _, e := range logged.AllEntries() {
					if strings.HasPrefix(e.Message, "A format that was cut short could not be finished") {
						require.ErrorIs(t, e.Data[logrus.ErrorKey].(error), errInjected)
						told++
					}
				}
				assert.Positive(t, told)
			})
		})
	}
}

func TestOnlyCallsToMountKeepAMountGoing(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, l *life) error{
		"create":  func(ctx context.Context, l *life) error { return l.Create(ctx, "data", nil) },
		"remove":  func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") },
		"unmount": func(ctx context.Context, l *life) error { return l.Unmount(ctx, "data", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				mounted(t, b.start(t), "data", "b")
				l := a.start(t)
				begin := time.Now()
				_, err := l.Mount(limited(t, 5*time.Second), "data", "1")
				require.ErrorIs(t, err, volume.Unfinished)
				err = call(within(t), l)
				require.NotErrorIs(t, err, volume.Unfinished)
				assert.Equal(t, 5*time.Second+idleTTL, time.Since(begin))
			})
		})
	}
}

func TestAnUnmountThatWaitsWhenThePluginStopsIsDoneAndAnswered(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.containerEnds("1")
		w.setFault(at("host.Users", hang))
		go l.lookAfter("data") // has the volume
		time.Sleep(time.Second)
		begin := time.Now()
		time.AfterFunc(time.Second, l.cancel)
		require.ErrorContains(t, l.Unmount(within(t), "data", "1"), "the plugin is stopping")
		assert.Equal(t, time.Second, time.Since(begin))
		assert.Empty(t, a.journal["data"].Uses)
		assert.True(t, a.journal["data"].Releasing)
		w.setFault(calm)
	})
}

func TestWhoIsWaitingWhenThePluginStopsIsToldSo(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, l *life) error{
		"create":  func(ctx context.Context, l *life) error { return l.Create(ctx, "other", nil) },
		"get":     func(ctx context.Context, l *life) error { _, err := l.Get(ctx, "other"); return err },
		"list":    func(ctx context.Context, l *life) error { _, err := l.List(ctx); return err },
		"mount":   func(ctx context.Context, l *life) error { _, err := l.Mount(ctx, "data", "1"); return err },
		"unmount": func(ctx context.Context, l *life) error { return l.Unmount(ctx, "used", "1") },
		"remove":  func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := mounted(t, made(t, a.start(t), "data"), "used", "1")
				time.Sleep(time.Minute) // what was learnt of the volumes is old
				a.containerEnds("1")
				w.setFault(func(_, call string) fault {
					if strings.HasPrefix(call, "cloud.") {
						return hang
					}
					return noFault
				})
				time.AfterFunc(time.Second, l.cancel)
				err := call(within(t), l)
				require.ErrorContains(t, err, "the plugin is stopping")
				require.ErrorContains(t, err, "; try again when it runs")
				require.ErrorIs(t, err, context.Canceled)
				require.NotErrorIs(t, err, volume.NotFound)
				w.setFault(calm)
			})
		})
	}
}

func TestARemoveThatFailsAfterTheReleaseNamesTheDisk(t *testing.T) {
	for call, held := range map[string]bool{"cloud.Find": true, "cloud.Delete": false} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := made(t, a.start(t), "data")
				if held {
					mustMount(t, l, "data", "1")
					a.containerEnds("1")
				}
				w.setFault(at(call, failBefore))
				err := l.Remove(within(t), "data")
				require.ErrorContains(t, err, `(volume "data", `+w.disk("data").ID+", node a)")
				require.Nil(t, a.journal["data"], "it is released")
				w.setFault(calm)
			})
		})
	}
}

// What the device cannot tell, because it was never here, the cloud must say.
func TestADetachThatTheCloudDoesNotConfirmIsNotOver(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.arrival = time.Hour
		l := made(t, a.start(t), "data")
		_, err := l.Mount(limited(t, time.Second), "data", "1")
		require.ErrorIs(t, err, volume.Unfinished)
		w.setFault(at("cloud.Find", failBefore))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.NotNil(t, a.journal["data"])
		assert.True(t, a.journal["data"].Releasing)
		w.setFault(calm)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Nil(t, a.journal["data"])
	})
}
