package driver

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// taken takes a snapshot, which takes a minute to complete.
func (l *life) taken(t *testing.T, name, key string) (*Snapshot, string) {
	t.Helper()
	l.machine.world.set(func() { l.machine.world.copying = time.Minute })
	s, outcome, err := l.TakeSnapshot(t.Context(), name, key, func(volume.Step) {})
	require.NoError(t, err)
	assert.Equal(t, providers.SnapshotComplete, s.State)
	return s, outcome
}

// writes is what a container wrote last.
func (w *world) writes(name string) (content string) {
	w.set(func() { content = w.byName(name).content })
	return content
}

func TestASnapshotShowsTheVolumeAsItWasAtItsInstant(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		before := w.writes("data")
		w.copying = time.Minute
		var told steps
		s, outcome, err := l.TakeSnapshot(t.Context(), "data", "one", func(step volume.Step) {
			if told.note(step); step.Phase == volume.WaitingForSnapshot {
				a.container("data", "1") // writes while the cloud copies
			}
		})
		require.NoError(t, err)
		assert.Equal(t, "snapshot "+s.ID+" of data, whose file system was frozen for 0s", outcome)
		assert.Equal(t, 1, w.heldStill)
		assert.False(t, a.isFrozen())
		assert.NotEqual(t, before, w.writes("data"))
		assert.Equal(t, steps{volume.TakingSnapshot, volume.WaitingForSnapshot}, slices.Compact(told))

		lb := b.start(t)
		require.NoError(t, lb.Create(within(t), "copy", map[string]string{"snapshot": s.ID}))
		assert.Equal(t, before, w.writes("copy"))
		mustMount(t, lb, "copy", "2")
		mustUnmount(t, lb, "copy", "2")
		mustUnmount(t, l, "data", "1")
		assert.Zero(t, w.disk("copy").formats)

		all, err := lb.Snapshots(t.Context())
		require.NoError(t, err)
		require.Len(t, all, 1)
		assert.Equal(t, "by hand", Reason(all[0]))
		require.NoError(t, lb.DeleteSnapshot(t.Context(), s.ID))
		require.NoError(t, lb.DeleteSnapshot(t.Context(), s.ID))
		assert.Empty(t, w.snapshots)
	})
}

func TestASnapshotThatIsAskedForTwiceIsOne(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.setFault(at("cloud.Snapshot take", failAfter))
		_, _, err := l.TakeSnapshot(t.Context(), "data", "one", func(volume.Step) {})
		require.Error(t, err)
		assert.False(t, a.isFrozen())
		w.setFault(calm)
		first, _ := l.taken(t, "data", "one")
		again, _ := l.taken(t, "data", "one")
		assert.Equal(t, first, again)
		assert.Len(t, w.snapshots, 1)
		other, _ := l.taken(t, "data", "two")
		assert.NotEqual(t, first.ID, other.ID)
		mustUnmount(t, l, "data", "1")
	})
}

func TestASnapshotOfWhatIsNotMountedHereSaysWhatItIsLike(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := made(t, a.start(t), "data"), b.start(t)
		_, outcome := lb.taken(t, "data", "free")
		assert.Regexp(t, `^snapshot .* of data$`, outcome)
		mustMount(t, la, "data", "1")
		_, outcome = lb.taken(t, "data", "elsewhere")
		assert.Contains(t, outcome, "as after a power failure")
		w.setFault(at("host.Freeze", failBefore))
		_, outcome = la.taken(t, "data", "not to be frozen")
		assert.Contains(t, outcome, "as after a power failure")
		assert.Zero(t, w.heldStill)
		w.setFault(calm)
		mustUnmount(t, la, "data", "1")
	})
}

// detachedOnly is a cloud that copies no volume that a node holds.
type detachedOnly struct{ *fakeProvider }

func (p detachedOnly) Snapshot(ctx context.Context, id string, spec providers.SnapshotSpec) (*providers.Snapshot, error) {
	held := false
	p.machine.world.set(func() { held = p.machine.world.disks[id].Held() })
	if held {
		return nil, providers.ErrHeld
	}
	return p.fakeProvider.Snapshot(ctx, id, spec)
}

func TestAVolumeThatIsKeptIsReleasedForASnapshotThatNeedsThat(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t, func(c *Config) { c.Provider, c.Probe = detachedOnly{c.Provider.(*fakeProvider)}, time.Second })
		made(t, l, "data")
		_, err := l.Mount(within(t), "data", "1")
		require.NoError(t, err)
		_, _, err = l.TakeSnapshot(t.Context(), "data", "in use", func(volume.Step) {})
		require.ErrorIs(t, err, volume.Held)
		require.NoError(t, l.Unmount(within(t), "data", "1")) // as Docker's probe does
		require.Equal(t, a.name, w.holder("data"))
		_, outcome, err := l.TakeSnapshot(t.Context(), "data", "kept", func(volume.Step) {})
		require.NoError(t, err)
		assert.Regexp(t, " of data$", outcome)
	})
}

func TestASnapshotThatFailsSaysSo(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.copying = time.Minute
		_, _, err := l.TakeSnapshot(t.Context(), "data", "one", func(step volume.Step) {
			w.set(func() {
				for _, shot := range w.shots {
					shot.State, shot.Detail = providers.SnapshotFailed, "out of luck"
				}
			})
		})
		require.ErrorContains(t, err, `has failed: "out of luck"`)
		require.ErrorContains(t, err, `volume "data"`)
		_, _, err = l.TakeSnapshot(t.Context(), "none", "one", func(volume.Step) {})
		require.ErrorIs(t, err, volume.NotFound)
		mustUnmount(t, l, "data", "1")
	})
}

func TestAVolumeIsNotRemovedBeforeItsLastSnapshotIsComplete(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		w.copying = time.Minute
		require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "snapshot"}))
		require.NoError(t, l.Remove(t.Context(), "data"))
		all, err := l.Snapshots(t.Context())
		require.NoError(t, err)
		require.Len(t, all, 1)
		assert.Equal(t, providers.SnapshotComplete, all[0].State)
		assert.Equal(t, "before its volume was removed", Reason(all[0]))
	})
}

// The first snapshot of a large volume takes many hours. Docker gives up each call after two minutes at most, and its users come again.
func TestASnapshotThatTakesHoursIsTakenOnce(t *testing.T) {
	again := func(t *testing.T, call func(ctx context.Context) error) (tries int) {
		t.Helper()
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
			err := call(ctx)
			cancel()
			if err == nil {
				return tries
			}
			require.ErrorIs(t, err, volume.Unfinished)
			tries++
			require.Less(t, tries, 100, "it begins anew again and again")
			time.Sleep(10 * time.Minute)
		}
	}
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "snapshot"}))
		mustMount(t, l, "data", "1")
		w.set(func() { w.copying = 5 * time.Hour })
		assert.Greater(t, again(t, func(ctx context.Context) error { return l.Create(ctx, "copy", map[string]string{"from": "data"}) }), 20)
		assert.Equal(t, 1, w.heldStill, "one snapshot was taken")
		assert.Empty(t, w.snapshots, "it is deleted")
		mustUnmount(t, l, "data", "1")

		garbage, removing := []Garbage(nil), time.Now()
		assert.Greater(t, again(t, func(ctx context.Context) error {
			if time.Since(removing) > 4*time.Hour && garbage == nil {
				var err error
				garbage, err = l.Garbage(t.Context(), true)
				require.NoError(t, err)
			}
			return l.Remove(ctx, "data")
		}), 20)
		assert.Empty(t, garbage, "it is being taken")
		assert.Len(t, w.snapshots, 1)
		assert.Len(t, w.shots, 2, "those that were ever taken")
	})
}

func TestAVolumeIsMadeACopyOfAnother(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "retain", "snapshot-schedule": "0 12 * * *", "fstype": "xfs"}))
		mustMount(t, l, "data", "1")
		was := w.writes("data")
		w.copying = time.Minute
		require.NoError(t, l.Create(t.Context(), "copy", map[string]string{"from": "data", "size": "20GiB"}))
		assert.Equal(t, was, w.writes("copy"))
		assert.Equal(t, 1, w.heldStill)
		assert.Empty(t, w.snapshots, "the snapshot for it is deleted")
		record := w.disk("copy").Record
		assert.Equal(t, "data", record[volume.KeyFrom])
		assert.Equal(t, "delete", record[volume.KeyReclaim])
		assert.Equal(t, volume.NoSchedule, record[volume.KeySchedule])

		// Once more, as after an answer that was lost; from another node; and what is not the same.
		for _, again := range []*life{l, b.start(t)} {
			require.NoError(t, again.Create(within(t), "copy", map[string]string{"from": "data"}))
			require.ErrorContains(t, again.Create(within(t), "copy", map[string]string{"from": "other"}), "exists with from=data, not other")
		}
		assert.Len(t, w.disks, 2)
		require.ErrorContains(t, l.Create(within(t), "data", map[string]string{"from": "data"}), `exists, and was not made as a copy of "data"`)
		require.ErrorIs(t, l.Create(within(t), "another", map[string]string{"from": "none"}), volume.NotFound)
		require.ErrorContains(t, l.Create(within(t), "another", map[string]string{"from": "data", "snapshot": "x"}), "leave the other out")
		require.ErrorContains(t, l.Create(within(t), "another", map[string]string{"from": "data", "fstype": "ext4"}), "leave out fstype")
		assert.Len(t, w.disks, 2)

		w.setFault(at("cloud.DeleteSnapshot", failBefore))
		require.NoError(t, l.Create(t.Context(), "third", map[string]string{"from": "data"}))
		w.setFault(calm)
		garbage, err := l.Garbage(t.Context(), false)
		require.NoError(t, err)
		assert.Empty(t, garbage, "the copy could still be going on")
		time.Sleep(copyAge)
		garbage, err = l.Garbage(t.Context(), false)
		require.NoError(t, err)
		if assert.Len(t, garbage, 1) {
			assert.Equal(t, "it is left over from a copy of the volume", garbage[0].Why)
		}
		mustUnmount(t, l, "data", "1")
	})
}

func TestARestartWhileASnapshotToCopyAVolumeIsTakenDoesNotBeginAnother(t *testing.T) {
	for name, c := range map[string]struct {
		copying, until, away time.Duration
		another              bool
	}{
		"still being taken":        {2 * time.Hour, time.Minute, time.Minute, false},
		"complete meanwhile":       {2 * time.Minute, time.Minute, 5 * time.Minute, false},
		"complete for a long time": {2 * time.Minute, time.Minute, time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := a.start(t)
				require.NoError(t, l.Create(within(t), "data", nil))
				mustMount(t, l, "data", "1")
				was := w.writes("data")
				w.set(func() { w.copying = c.copying })
				create := func(l *life, name string) error {
					ctx, cancel := context.WithTimeout(context.Background(), 3*time.Hour)
					defer cancel()
					return l.Create(ctx, name, map[string]string{"from": "data"})
				}
				go func() { _ = create(l, "copy") }()
				time.Sleep(c.until)
				l.kill()
				time.Sleep(c.away)
				l = a.start(t)
				begun, third := time.Now(), make(chan error)
				go func() { third <- create(l, "third") }()
				time.Sleep(time.Second)
				require.NoError(t, create(l, "copy"))
				require.NoError(t, <-third)
				assert.Equal(t, was, w.writes("copy"))
				if c.another {
					w.set(func() { assert.Len(t, w.shots, 3, "the first one may be old") })
					return
				}
				assert.LessOrEqual(t, time.Since(begun), c.copying+time.Minute)
				w.set(func() { assert.Len(t, w.shots, 2, "each copy has its own") })
				assert.Empty(t, w.snapshots, "they are deleted")
			})
		})
	}
}

func TestAnotherNodeGoesOnWithTheSnapshotToCopyAVolume(t *testing.T) {
	for name, c := range map[string]struct{ dies, fails bool }{
		"whose node has died":                {dies: true},
		"which both wait for":                {},
		"and leaves it, if it cannot use it": {dies: true, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la := mounted(t, a.start(t), "data", "1")
				was := w.writes("data")
				w.set(func() { w.copying = 5 * time.Minute })
				create := func(l *life) error {
					return l.Create(limited(t, 2*time.Hour), "copy", map[string]string{"from": "data"})
				}
				first := make(chan error, 1)
				go func() { first <- create(la) }()
				time.Sleep(time.Minute)
				lb := b.start(t)
				if c.dies {
					la.kill()
				}
				if c.fails {
					w.setFault(at("cloud.Create", failBefore))
					require.Error(t, create(lb))
					w.setFault(calm)
					lb = a.start(t)
				} else {
					require.ErrorContains(t, lb.Create(within(t), "copy", map[string]string{"from": "data"}), "42% so far")
				}
				require.NoError(t, create(lb))
				if !c.dies {
					require.NoError(t, <-first)
				}
				assert.Equal(t, was, w.writes("copy"))
				w.set(func() { assert.Len(t, w.shots, 1) })
				assert.Empty(t, w.snapshots, "it is deleted")
			})
		})
	}
}

func TestASnapshotThatIsLeftOverFromACopyIsNotUsedForTheNext(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		for _, f := range []func(_, _ string) fault{at("cloud.DeleteSnapshot", failBefore), calm} {
			w.setFault(f)
			require.NoError(t, l.Create(within(t), "copy", map[string]string{"from": "data"}))
			require.NoError(t, l.Remove(within(t), "copy"))
			time.Sleep(time.Second)
		}
		assert.Len(t, w.shots, 2, "what the volume holds now may be something else")
	})
}

func TestAVolumeIsPutBackToASnapshot(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "retain", "tags": "team=storage"}))
		mustMount(t, l, "data", "1")
		old, was := w.disk("data").ID, w.writes("data")
		s, _ := l.taken(t, "data", "one")
		a.container("data", "1")
		now := w.writes("data")
		_, err := l.Rollback(within(t), "data", old, s.ID, func(volume.Step) {})
		require.ErrorIs(t, err, volume.InUse)
		assert.Len(t, w.disks, 1)
		mustUnmount(t, l, "data", "1")

		w.set(func() { w.disks[old].tags["cost"] = "42" })
		lb := b.start(t)
		for range 2 { // the second call finds that it is done
			outcome, err := lb.Rollback(t.Context(), "data", old, s.ID, func(volume.Step) {})
			require.NoError(t, err)
			assert.Contains(t, outcome, "volume "+KeptAs("data", old))
			assert.Equal(t, old, w.disk(KeptAs("data", old)).ID)
			assert.Equal(t, now, w.writes(KeptAs("data", old)))
			assert.Equal(t, was, w.writes("data"))
			assert.Equal(t, "retain", w.disk("data").Record[volume.KeyReclaim])
			assert.Len(t, w.disks, 2)
			assert.Equal(t, map[string]string{"team": "storage", "cost": "42"}, w.disk("data").tags, "as they are in the cloud now")
		}
		require.NoError(t, lb.Create(within(t), "data", map[string]string{"tags": "team=storage"}), "it is the volume that was asked for")
		_, err = l.Rollback(within(t), "data", "vol-of-another-time", s.ID, func(volume.Step) {})
		require.ErrorIs(t, err, volume.Conflict)
		time.Sleep(time.Minute)
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
	})
}

// Whichever call is the last of the process, the next life goes on to the same end.
func TestPuttingAVolumeBackGoesOnAfterACrash(t *testing.T) {
	for crash, what := range map[fault]string{crashBefore: "is not made", crashAfter: "is the last"} {
		for n := 1; ; n++ {
			crashed := ""
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := mounted(t, a.start(t), "data", "1")
				old, was := w.disk("data").ID, w.writes("data")
				s, _ := l.taken(t, "data", "one")
				a.container("data", "1")
				mustUnmount(t, l, "data", "1")
				synctest.Wait()
				calls := 0
				w.setFault(func(_, call string) fault {
					if calls++; calls != n {
						return noFault
					}
					crashed = call + " " + what
					return crash
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := l.Rollback(ctx, "data", old, s.ID, func(volume.Step) {})
				w.setFault(calm)
				if crashed == "" || !l.dead.Load() {
					require.NoError(t, err)
				} else {
					l.kill()
					l = a.startAsked(t)
					_, err = l.Rollback(t.Context(), "data", old, s.ID, func(volume.Step) {})
					require.NoError(t, err, "after %s", crashed)
				}
				require.ElementsMatch(t, []string{"data", KeptAs("data", old)}, w.names(), "after %s", crashed)
				require.Equal(t, old, w.disk(KeptAs("data", old)).ID)
				require.Equal(t, was, w.writes("data"))
			})
			if crashed == "" {
				require.Greater(t, n, 8)
				break
			}
		}
	}
}

func (w *world) names() (names []string) {
	w.set(func() {
		for d := range maps.Values(w.disks) {
			names = append(names, d.Name)
		}
	})
	return names
}

func TestAVolumeIsNotDeletedWhileASnapshotOfItIsCopied(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l, lb := made(t, a.start(t), "data"), b.start(t)
		w.copying = 10 * time.Minute
		removed := make(chan error, 1)
		time.AfterFunc(time.Minute, func() { removed <- lb.Remove(t.Context(), "data") })
		_, _, err := l.TakeSnapshot(t.Context(), "data", "one", func(volume.Step) {})
		require.NoError(t, err)
		require.NoError(t, <-removed)
		assert.Nil(t, w.disk("data"))
	})
}

// failedCopies is a cloud whose copies begin and then fail.
type failedCopies struct{ *fakeProvider }

func (p *failedCopies) FindSnapshot(ctx context.Context, id string) (*providers.Snapshot, error) {
	s, err := p.fakeProvider.FindSnapshot(ctx, id)
	if err == nil {
		s.State, s.Detail = providers.SnapshotFailed, "out of space"
	}
	return s, err
}

func (p *failedCopies) ListSnapshots(ctx context.Context) ([]*providers.Snapshot, error) {
	all, err := p.fakeProvider.ListSnapshots(ctx)
	for _, s := range all {
		s.State, s.Detail = providers.SnapshotFailed, "out of space"
	}
	return all, err
}

func TestAVolumeWhoseLastSnapshotFailsIsNotDeleted(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.copying = time.Minute
		l := a.start(t, func(c *Config) { c.Provider = &failedCopies{c.Provider.(*fakeProvider)} })
		require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "snapshot"}))
		mustMount(t, l, "data", "1")
		mustUnmount(t, l, "data", "1")
		require.ErrorContains(t, l.Remove(within(t), "data"), "has failed")
		assert.NotNil(t, w.disk("data"))
	})
}

func TestACopyKeepsAsManySnapshotsAsItsOwnScheduleSays(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := scheduled2h(t, a.start(t))
		s, _ := l.taken(t, "data", "one")
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.Create(within(t), "copy", map[string]string{"snapshot": s.ID, "snapshot-schedule": "@daily"}))
		assert.Equal(t, volume.DefaultKeep, w.disk("copy").Record[volume.KeyKeep])
		require.NoError(t, l.Create(within(t), "other", map[string]string{"snapshot-schedule": "@daily"}))
		_, err := l.Rollback(t.Context(), "other", w.disk("other").ID, s.ID, func(volume.Step) {})
		require.NoError(t, err)
		assert.Equal(t, volume.DefaultKeep, w.disk("other").Record[volume.KeyKeep])
	})
}

func TestAnotherVolumeIsNotTakenForTheCopyOfASnapshot(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l, lb := mounted(t, a.start(t), "data", "1"), b.start(t)
		old := w.disk("data").ID
		s, _ := l.taken(t, "data", "one")
		mustUnmount(t, l, "data", "1")
		require.NoError(t, lb.Create(within(t), "data.restoring", map[string]string{"snapshot": s.ID}))
		mustMount(t, lb, "data.restoring", "2")
		_, err := l.Rollback(t.Context(), "data", old, s.ID, func(volume.Step) {})
		require.ErrorIs(t, err, volume.Conflict)
		require.ErrorContains(t, err, `volume "data.restoring"`)
		require.ElementsMatch(t, []string{"data", "data.restoring"}, w.names())
		assert.Equal(t, old, w.disk("data").ID, "the volume keeps its name")
		mustUnmount(t, lb, "data.restoring", "2")
		_, err = l.Rollback(t.Context(), "data", old, s.ID, func(volume.Step) {})
		require.ErrorIs(t, err, volume.Conflict, "also when nothing uses it: it may hold more than the snapshot")
	})
}

func TestAVolumeWhoseOldDiskCouldHaveNoNameIsNotPutBack(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		name := strings.Repeat("n", 250)
		l := made(t, a.start(t), name)
		s, _ := l.taken(t, name, "one")
		_, err := l.Rollback(t.Context(), name, w.disk(name).ID, s.ID, func(volume.Step) {})
		require.ErrorIs(t, err, volume.Invalid)
		assert.Equal(t, []string{name}, w.names())
	})
}

func TestBetweenTwoNamesTheCloudIsAskedUntilItAnswers(t *testing.T) {
	for _, call := range []string{"cloud.Adopt", "cloud.Find"} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := made(t, a.start(t), "data")
			old := w.disk("data").ID
			s, _ := l.taken(t, "data", "one")
			gone := false
			w.setFault(func(_, is string) fault {
				gone = gone || is == "cloud.Forget"
				if gone && is == call {
					return failBefore
				}
				return noFault
			})
			time.AfterFunc(10*time.Minute, func() { w.setFault(calm) })
			_, err := l.Rollback(t.Context(), "data", old, s.ID, func(volume.Step) {})
			require.NoError(t, err)
			assert.ElementsMatch(t, []string{"data", KeptAs("data", old)}, w.names())
		})
	}
}

func TestADiskThatWasForgottenIsNotTakenForOneBetweenTwoNames(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		old := w.disk("data").ID
		s, _ := l.taken(t, "data", "one")
		require.NoError(t, l.Forget(within(t), "data", ""))
		_, err := l.Rollback(within(t), "data", old, s.ID, func(volume.Step) {})
		require.ErrorIs(t, err, volume.NotFound)
		assert.Nil(t, w.disk(KeptAs("data", old)))
	})
}

func TestAVolumeThatWasNeverMountedIsNotCopied(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		err := l.Create(within(t), "copy", map[string]string{"from": "data"})
		require.ErrorContains(t, err, "never been mounted")
		assert.Equal(t, []string{"data"}, w.names(), "a copy could not be mounted")
	})
}

// The cloud takes the request for a snapshot and does not answer.
func TestASnapshotDoesNotKeepAVolumeFromBeingReleased(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.setFault(at("cloud.Snapshot take", hang))
		go func() { _, _, _ = l.TakeSnapshot(t.Context(), "data", "one", func(volume.Step) {}) }()
		time.Sleep(time.Second)
		w.setFault(calm) // the request that was sent is not answered yet
		begun := time.Now()
		a.containerEnds("1")
		require.NoError(t, l.Unmount(t.Context(), "data", "1"))
		assert.LessOrEqual(t, time.Since(begun), time.Minute)
		time.Sleep(time.Hour)
		w.set(func() { assert.Len(t, w.snapshots, 1) })
	})
}

type mayNotListSnapshots struct{ *fakeProvider }

func (mayNotListSnapshots) ListSnapshots(context.Context) ([]*providers.Snapshot, error) {
	return nil, providers.ErrDenied
}

func TestAVolumeIsRemovedWithCredentialsThatMayNotListSnapshots(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t, func(cfg *Config) { cfg.Provider = mayNotListSnapshots{cfg.Provider.(*fakeProvider)} }), "data")
		require.NoError(t, l.Remove(within(t), "data"))
		assert.Nil(t, w.disk("data"))
	})
}
