package driver

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// formatted is a volume with a file system on it that no node holds.
func formatted(t *testing.T, l *life, name string) {
	t.Helper()
	mounted(t, l, name, "first")
	mustUnmount(t, l, name, "first")
}

// mountAsSwarmDoes calls Mount again, as Swarm does, until it is answered.
func mountAsSwarmDoes(t *testing.T, l *life, name, id string) {
	t.Helper()
	for range 20 {
		if _, err := l.Mount(within(t), name, id); err == nil {
			require.True(t, l.machine.container(name, id), "the path shows no file system")
			return
		}
		time.Sleep(5 * time.Second)
	}
	t.Fatal("never mounted")
}

func TestMountAndUnmountCostTheCloudFewCalls(t *testing.T) {
	for _, c := range []struct {
		arrival time.Duration
		mount   map[string]int
	}{
		{0, map[string]int{"Find": 1, "Attach": 1}},
		{1 * time.Second, map[string]int{"Find": 1, "Attach": 1}},
		{5 * time.Second, map[string]int{"Find": 1, "Attach": 1}},
		{26 * time.Second, map[string]int{"Find": 2, "Attach": 1}}, // with one retry that joins,
		{80 * time.Second, map[string]int{"Find": 2, "Attach": 1}}, // and with two
	} {
		for _, departure := range []time.Duration{0, time.Second, 40 * time.Second} {
			t.Run(fmt.Sprintf("%s to arrive, %s to go", c.arrival, departure), func(t *testing.T) {
				scene(t, func(t *testing.T, w *world, a, b *machine) {
					l := a.start(t)
					formatted(t, l, "data")
					time.Sleep(time.Minute) // the start is over
					w.set(func() { w.arrival, w.departure = c.arrival, departure })
					w.count()
					mountAsSwarmDoes(t, l, "data", "1")
					assert.Equal(t, c.mount, w.count())
					mustMount(t, l, "data", "2")
					assert.Empty(t, w.count(), "it is mounted")
					mustUnmount(t, l, "data", "1")
					assert.Empty(t, w.count(), "it is still used")
					mustUnmount(t, l, "data", "2")
					assert.Equal(t, map[string]int{"Detach": 1}, w.count(), "the device's end tells the rest")
					time.Sleep(2 * time.Minute)
					assert.Empty(t, w.count(), "nothing is left to be asked")
					w.set(func() { w.arrival = 0 })
					mustMount(t, b.start(t), "data", "3")
					assert.Equal(t, 1, w.disk("data").formats)
				})
			})
		}
	}
}

func TestDockersQuestionBeforeAMountIsNotAskedTwice(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		formatted(t, la, "data")
		time.Sleep(time.Minute)
		w.count()
		get := func(l *life) {
			_, err := l.Get(within(t), "data")
			require.NoError(t, err)
		}
		get(la)
		mustMount(t, la, "data", "1")
		assert.Equal(t, map[string]int{"Find": 1, "Attach": 1}, w.count())
		mustUnmount(t, la, "data", "1")
		time.Sleep(time.Minute)

		get(la)
		mustMount(t, lb, "data", "2") // between the two
		w.count()
		_, err := la.Mount(within(t), "data", "3")
		require.ErrorContains(t, err, "still attached to node b: machine b is running")
		calls := w.count()
		assert.Equal(t, attachTries, calls["Attach"], "which were refused")
		assert.Positive(t, calls["Find"])
		mustUnmount(t, lb, "data", "2")
		time.Sleep(time.Minute)

		get(la)
		require.NoError(t, lb.Remove(within(t), "data"))
		require.NoError(t, lb.Create(within(t), "data", nil))
		mustMount(t, la, "data", "4")
		mustUnmount(t, la, "data", "4")
		assert.Equal(t, 1, w.disk("data").formats, "it is another disk")
	})
}

func TestAfterADetachTheNextNodeIsNotHeldUpByOldReads(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		formatted(t, la, "data")
		mustMount(t, la, "data", "1")
		time.Sleep(time.Minute)
		w.setLag(4 * time.Second)
		w.count()
		mustUnmount(t, la, "data", "1")
		assert.Equal(t, map[string]int{"Detach": 1}, w.count())
		released := time.Now()
		mustMount(t, lb, "data", "2")
		assert.Zero(t, time.Since(released), "the cloud attaches what is free, whatever its answers show")
		assert.Equal(t, map[string]int{"Find": 1, "NodeState": 1, "Attach": 1}, w.count())
		mustUnmount(t, lb, "data", "2")
		mustMount(t, lb, "data", "3")
	})
}

func TestALiveHolderCostsAFewRefusedAttachesAndNoneLater(t *testing.T) {
	for _, policy := range []controller.Takeover{controller.TakeoverNever, controller.TakeoverStopped} {
		t.Run(string(policy), func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la, lb := a.start(t), b.start(t, func(c *Config) { c.Takeover = policy })
				mounted(t, la, "data", "1")
				time.Sleep(time.Minute)
				w.count()
				asked := attachTries // an answer might have been old
				for range 20 {       // as Swarm does
					_, err := lb.Mount(within(t), "data", "2")
					require.ErrorContains(t, err, "still attached to node a")
					require.NotContains(t, err.Error(), "is attached to node", "which is the same")
					assert.Equal(t, asked, w.count()["Attach"])
					asked = 0
					time.Sleep(5 * time.Second)
				}
				assert.Equal(t, "a", w.holder("data"))
				mustUnmount(t, la, "data", "1")
				mountAsSwarmDoes(t, lb, "data", "2")
				assert.Equal(t, 1, w.count()["Attach"])
				mustUnmount(t, lb, "data", "2")
			})
		})
	}
}

// slowFind is a cloud whose answers take long.
type slowFind struct {
	providers.Provider
	takes time.Duration
}

func (p *slowFind) Find(ctx context.Context, name string) (*providers.Volume, error) {
	if err := pause.For(ctx, p.takes); err != nil {
		return nil, err
	}
	return p.Provider.Find(ctx, name)
}

func TestNoAttachIsTriedOnceTheAnswersCannotBeOfATimeBeforeTheWait(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t, func(c *Config) { c.Provider = &slowFind{c.Provider, providers.MaxStale / 2} })
		mounted(t, la, "data", "1")
		time.Sleep(time.Minute)
		w.count()
		_, err := lb.Mount(within(t), "data", "2")
		require.ErrorContains(t, err, "still attached to node a")
		assert.Zero(t, w.count()["Attach"])
		mustUnmount(t, la, "data", "1")
	})
}

func TestATakeoverCostsNoRefusedAttach(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		mounted(t, la, "data", "1")
		time.Sleep(time.Minute)
		a.powerOff()
		w.set(func() { w.departure = 2 * time.Second })
		w.count()
		mustMount(t, lb, "data", "2")
		calls := w.count()
		assert.Equal(t, 1, calls["Detach"])
		assert.Equal(t, 1, calls["Attach"])
		mustUnmount(t, lb, "data", "2")
	})
}

// A process that dies after it has tried may hold the disk, whatever it was told of the holder: the next life lets go of it.
func TestATriedAttachThatACrashCutsShortIsCalledOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		formatted(t, la, "data")
		mustMount(t, la, "data", "1")
		time.Sleep(time.Minute)
		w.set(func() { w.arrival = time.Hour })
		w.setLag(4 * time.Second)
		mustUnmount(t, la, "data", "1")
		w.setFault(at("cloud.Attach", crashAfter))
		_, err := lb.Mount(within(t), "data", "2")
		require.Error(t, err)
		require.True(t, lb.dead.Load())
		require.Equal(t, "b", w.holder("data"))
		w.setFault(calm)
		_ = lb.Close(t.Context())
		b.start(t)
		time.Sleep(time.Minute)
		assert.Empty(t, w.holder("data"))
		w.set(func() { w.arrival = 0 })
		mustMount(t, la, "data", "3")
		mustUnmount(t, la, "data", "3")
	})
}

func TestATriedAttachWhoseDeviceDoesNotComeIsCalledOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		formatted(t, la, "data")
		mustMount(t, la, "data", "1")
		time.Sleep(time.Minute)
		w.set(func() { w.arrival = time.Hour })
		w.setLag(4 * time.Second)
		mustUnmount(t, la, "data", "1")
		_, err := lb.Mount(limited(t, 2*time.Minute), "data", "2")
		require.ErrorContains(t, err, "the attach was cancelled")
		assert.Empty(t, w.holder("data"))
	})
}

func TestWhatWasJustMountedAndReleasedHereIsNotSaidToBeInUseElsewhere(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		formatted(t, la, "data")
		mustMount(t, la, "data", "1")
		time.Sleep(time.Minute)
		w.setLag(5 * time.Second)
		mustUnmount(t, la, "data", "1")
		mustMount(t, lb, "data", "2")
		mustUnmount(t, lb, "data", "2")
		require.NoError(t, lb.Remove(within(t), "data"))

		mounted(t, la, "other", "3")
		time.Sleep(time.Minute)
		require.ErrorContains(t, lb.Remove(within(t), "other"), "in use on node a")
		mustUnmount(t, la, "other", "3")
	})
}

func TestWithoutADeviceADetachIsBelievedInWords(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		formatted(t, la, "data")
		w.set(func() { w.arrival = time.Hour }) // it never comes
		time.Sleep(time.Minute)
		_, err := la.Mount(limited(t, time.Minute), "data", "1")
		require.Error(t, err)
		w.setLag(4 * time.Second)
		w.count()
		time.Sleep(2 * time.Minute) // nobody comes back for it
		calls := w.count()
		assert.Positive(t, calls["Detach"])
		assert.Greater(t, calls["Find"], 1, "the first answers still said attached")
		assert.Less(t, calls["Find"], 10)
		assert.Empty(t, w.holder("data"))
		assert.LessOrEqual(t, calls["List"], 1)
		time.Sleep(suspectedEvery + reconcileEvery)
		assert.Equal(t, 1, w.count()["List"], "it might have been attached after all")
		time.Sleep(straysEvery / 2)
		assert.Empty(t, w.count(), "which is settled")
		w.set(func() { w.arrival = 0 })
		mustMount(t, lb, "data", "2")
	})
}

func TestOneAnswerDoesNotMakeAnAttachFail(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setLag(0)
		l := a.start(t)
		formatted(t, l, "data")
		time.Sleep(time.Minute)
		w.set(func() { w.arrival = 40 * time.Second })
		time.AfterFunc(time.Second, func() { w.setLag(time.Minute) })
		time.AfterFunc(firstCheck+time.Second, func() { w.setLag(0) })
		w.count()
		mountAsSwarmDoes(t, l, "data", "1")
		assert.Equal(t, map[string]int{"Find": 3, "Attach": 1}, w.count())
	})
}

func TestAnAttachThatCameToNothingFailsSoon(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		formatted(t, l, "data")
		w.set(func() { w.arrival = time.Hour })
		time.AfterFunc(time.Second, func() { w.alter(func(d *disk) { d.Attachment = providers.Attachment{} }) })
		begun := time.Now()
		_, err := l.Mount(limited(t, time.Minute), "data", "1")
		require.ErrorContains(t, err, "no longer held by this node")
		assert.Less(t, time.Since(begun), controller.AttachTimeout/2)
	})
}

func TestAnAttachThatNeverEndsIsExplained(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		formatted(t, l, "data")
		w.set(func() { w.arrival = time.Hour })
		time.AfterFunc(time.Minute, func() {
			w.alter(func(d *disk) { d.Attachment.State, d.Attachment.Problem = providers.AttachFailed, "the slot is stuck" })
		})
		w.count()
		var err error
		for range 4 {
			if _, err = l.Mount(within(t), "data", "1"); err != nil && time.Since(w.disk("data").present) > -time.Hour+controller.AttachTimeout {
				break
			}
		}
		require.ErrorContains(t, err, "no device has arrived within 1m30s")
		require.ErrorContains(t, err, "the slot is stuck")
	})
}

func TestAFormatIsDecidedOnAFreshWordOfTheCloud(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		require.NoError(t, la.Create(within(t), "data", nil))
		time.Sleep(50 * time.Second)
		mustMount(t, lb, "data", "1") // it is formatted and marked, elsewhere
		mustUnmount(t, lb, "data", "1")
		synctest.Wait()
		w.alter(func(d *disk) { d.fstype, d.data = "", false }) // and now it is blank
		time.Sleep(30 * time.Second)
		w.mu.Lock()
		w.lag = func() time.Duration { // this node is told that it was never formatted, the first time it asks
			w.lag = func() time.Duration { return 0 }
			return time.Minute
		}
		w.mu.Unlock()
		_, err := la.Mount(within(t), "data", "2")
		require.ErrorContains(t, err, "blank but was formatted before")
		assert.Equal(t, 1, w.disk("data").formats)
	})
}

func TestNothingIsFormattedThatTheCloudDoesNotSayIsHere(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setLag(0)
		l := made(t, a.start(t), "data")
		time.Sleep(2 * time.Minute)
		w.setLag(time.Minute)
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "the cloud does not say that this node holds the disk")
		assert.Zero(t, w.disk("data").formats)
		w.setLag(0)
		time.Sleep(time.Minute)
		assert.Empty(t, w.holder("data"))
		mustMount(t, l, "data", "2")
	})
}

func TestAnswersMayBeSecondsOld(t *testing.T) {
	for _, age := range []time.Duration{time.Second, 5 * time.Second} {
		t.Run(age.String(), func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				w.setLag(age)
				la, lb := a.start(t), b.start(t)
				require.NoError(t, la.Create(within(t), "data", nil))
				_, err := la.Get(within(t), "data")
				require.NoError(t, err)
				mustMount(t, la, "data", "1")
				mustUnmount(t, la, "data", "1")
				assert.Empty(t, w.holder("data"))
				mustMount(t, lb, "data", "2") // which is told that it is held by a
				mustUnmount(t, lb, "data", "2")
				mustMount(t, lb, "data", "3")
				mustUnmount(t, lb, "data", "3")
				assert.Equal(t, 1, w.disk("data").formats)

				first := w.disk("data").ID
				require.NoError(t, lb.Remove(within(t), "data"))
				assert.Nil(t, w.disk("data"))
				for range 3 {
					_, err = lb.Get(within(t), "data")
					require.ErrorIs(t, err, volume.NotFound)
					all, err := lb.List(within(t))
					require.NoError(t, err)
					assert.Empty(t, all)
					time.Sleep(time.Second)
				}
				require.NoError(t, lb.Create(within(t), "data", nil))
				require.NotNil(t, w.disk("data"))
				assert.NotEqual(t, first, w.disk("data").ID)
				_, err = lb.Get(within(t), "data")
				require.NoError(t, err)
				all, err := lb.List(within(t))
				require.NoError(t, err)
				assert.Len(t, all, 1)
				require.NoError(t, lb.Remove(within(t), "data"))
				assert.Nil(t, w.disk("data"), "it had just been made")
				mounted(t, lb, "data", "4")
				mustUnmount(t, lb, "data", "4")
				require.NoError(t, lb.Remove(within(t), "data"), "right after it was held")
				assert.Nil(t, w.disk("data"))
			})
		})
	}
}

func TestAFormatCutShortIsFinishedWhateverAnOldAnswerSays(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setLag(5 * time.Second)
		l := made(t, a.start(t), "data")
		time.Sleep(time.Minute)
		diesMounting(t, l, "host.Format mkfs", crashBefore)
		w.setLag(30 * time.Second) // it was not held then
		synctest.Wait()
		w.alter(func(d *disk) { d.half = true })
		l = a.start(t)
		time.AfterFunc(2*time.Second, func() { w.setLag(0) })
		mustMount(t, l, "data", "1")
		assert.False(t, w.disk("data").half)
	})
}

func TestAVolumeThatWasRemovedDoesNotComeBack(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setLag(0)
		l := made(t, a.start(t), "data")
		time.Sleep(time.Minute)
		require.NoError(t, l.Remove(within(t), "data"))
		for _, age := range []time.Duration{0, 5 * time.Second, 0, 5 * time.Second} { // one copy of the cloud knows, another does not
			w.setLag(age)
			_, err := l.Get(within(t), "data")
			require.ErrorIs(t, err, volume.NotFound)
			require.NoError(t, l.Remove(within(t), "data"))
			time.Sleep(time.Second)
		}
	})
}

func TestAVolumeThatWasMadeAnewElsewhereIsFoundAtOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		la, lb := a.start(t), b.start(t)
		formatted(t, la, "data")
		time.Sleep(time.Minute)
		require.NoError(t, lb.Remove(within(t), "data"))
		require.NoError(t, lb.Create(within(t), "data", nil))
		w.setLag(4 * time.Second)
		mustMount(t, la, "data", "1")
	})
}

func TestRemoveWaitsForTheCloudToFinishADetach(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		formatted(t, l, "data")
		time.Sleep(time.Minute)
		mustMount(t, l, "data", "1")
		w.set(func() { w.departure = 20 * time.Second })
		mustUnmount(t, l, "data", "1")
		w.count()
		require.NoError(t, l.Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
		assert.Zero(t, w.count()["Detach"])
	})
}

func TestATakeoverLosesNoTimeOnceTheCloudHasLetGo(t *testing.T) {
	for _, departure := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second} {
		t.Run(departure.String(), func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				w.setLag(0)
				la, lb := a.start(t), b.start(t)
				formatted(t, la, "data")
				mustMount(t, la, "data", "1")
				time.Sleep(time.Minute)
				a.powerOff()
				w.set(func() { w.departure = departure })
				w.count()
				begin := time.Now()
				mustMount(t, lb, "data", "2")
				assert.Less(t, time.Since(begin)-departure, time.Second)
				assert.LessOrEqual(t, w.count()["Find"], 3+int(departure/(400*time.Millisecond)))
			})
		})
	}
}

// probing drivers expect Docker to look at a volume before it starts a container.
func probing(cfg *Config) { cfg.Probe = 2 * time.Second }

// probes is what Docker does before each start of a container, unless it is told not to.
func probes(t *testing.T, l *life, name string) {
	t.Helper()
	mustMount(t, l, name, "a look")
	l.machine.containerEnds("a look")
	require.NoError(t, l.Unmount(within(t), name, "a look"))
}

func TestAProbeAtAVolumeDoesNotDetachIt(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t, probing), b.start(t, probing)
		formatted(t, la, "data")
		time.Sleep(time.Minute)
		w.set(func() { w.arrival, w.departure = 5*time.Second, 5*time.Second })
		w.count()

		probes(t, la, "data")
		time.Sleep(probeGrace / 2)
		begin := time.Now()
		mustMount(t, la, "data", "1")
		assert.Zero(t, time.Since(begin), "it is still there")
		assert.Equal(t, map[string]int{"Find": 1, "Attach": 1}, w.count())
		time.Sleep(time.Minute)
		assert.Equal(t, "a", w.holder("data"), "and stays as long as it is used")
		mustUnmount(t, la, "data", "1") // after a minute
		time.Sleep(w.departure)
		assert.Empty(t, w.holder("data"), "and no longer")

		probes(t, la, "data")
		time.Sleep(probeGrace + w.departure)
		assert.Empty(t, w.holder("data"), "nobody came back")

		// Another node waits, and no more than that.
		probes(t, la, "data")
		mustMount(t, lb, "data", "2")
		assert.Equal(t, "b", w.holder("data"))
		time.Sleep(time.Minute)
		mustUnmount(t, lb, "data", "2")

		probes(t, la, "data")
		require.NoError(t, la.Remove(within(t), "data"), "nobody uses it")
	})
}

func TestAVolumeKeptForSomebodyToComeBackDoesNotOutliveTheProcess(t *testing.T) {
	for how, end := range map[string]func(l *life) error{
		"it ends":    func(l *life) error { return l.Close(context.Background()) },
		"it crashes": func(l *life) error { l.kill(); return nil },
	} {
		t.Run(how, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := a.start(t, probing)
				formatted(t, l, "data")
				probes(t, l, "data")
				assert.Equal(t, "a", w.holder("data"))
				require.NoError(t, end(l))
				if how == "it crashes" {
					assert.Equal(t, "a", w.holder("data"))
					a.start(t)
					time.Sleep(idleTTL + time.Second)
				}
				assert.Empty(t, w.holder("data"))
			})
		})
	}
}
