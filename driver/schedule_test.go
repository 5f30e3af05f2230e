package driver

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// due are for when the snapshots in the cloud were due, the oldest first.
func (w *world) due() (times []string) {
	w.set(func() {
		for _, s := range sorted(w) {
			if at := volume.DueAt(s.Record); !at.IsZero() {
				times = append(times, at.Format("02 15:04"))
			}
		}
	})
	return times
}

func sorted(w *world) (all []*providers.Snapshot) {
	for id, shot := range w.shots {
		if w.snapshots[id] != nil {
			all = append(all, w.shown(shot))
		}
	}
	slices.SortFunc(all, providers.OlderSnapshot)
	return all
}

// found counts the findings of a kind.
func (e *events) found(kind volume.Finding) (n int) {
	for _, f := range take[volume.Found](e) {
		if f.Finding == kind {
			n++
		}
	}
	return n
}

// Worlds begin at midnight of 1 January 2000.
func scheduled2h(t *testing.T, l *life) *life {
	t.Helper()
	require.NoError(t, l.Create(within(t), "data", map[string]string{"snapshot-schedule": "0 */2 * * *", "snapshot-keep": "3"}))
	mustMount(t, l, "data", "1")
	return l
}

func TestSnapshotsAreTakenByScheduleAndExpire(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		var e events
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t, e.observe))
		hand, _ := l.taken(t, "data", "by hand")
		w.copying = 5 * time.Minute
		time.Sleep(time.Hour)
		assert.Empty(t, w.due(), "none is due since the volume exists")
		time.Sleep(time.Hour)
		assert.Equal(t, []string{"01 02:00"}, w.due())
		assert.Equal(t, 2, w.heldStill)
		info, err := l.Get(within(t), "data")
		require.NoError(t, err)
		assert.Equal(t, "0 */2 * * *", info.Status["snapshot-schedule"])
		assert.Equal(t, "2000-01-01T02:00:00Z", info.Status["snapshot-due"], "it is not complete")
		assert.NotContains(t, info.Status, "last-snapshot")
		time.Sleep(2 * time.Hour)
		assert.Equal(t, []string{"01 02:00", "01 04:00"}, w.due())
		time.Sleep(4*time.Hour - 3*time.Minute)
		assert.Equal(t, []string{"01 02:00", "01 04:00", "01 06:00"}, w.due())
		time.Sleep(4 * time.Minute)
		assert.Equal(t, []string{"01 02:00", "01 04:00", "01 06:00", "01 08:00"}, w.due(), "none expires before a newer one is complete")
		time.Sleep(10 * time.Minute)
		assert.Equal(t, []string{"01 04:00", "01 06:00", "01 08:00"}, w.due())
		info, err = l.Get(within(t), "data")
		require.NoError(t, err)
		assert.Equal(t, "2000-01-01T08:00:00Z", info.Status["last-snapshot"])
		assert.NotContains(t, info.Status, "snapshot-due")
		assert.Equal(t, time.Date(2000, 1, 1, 8, 0, 0, 0, time.UTC), l.Here()[0].LastSnapshot)
		assert.NotNil(t, w.snapshots[hand.ID], "one that was taken by hand never expires")
		assert.Zero(t, e.found(volume.LateSnapshot))
		w.count()
		time.Sleep(time.Hour)
		assert.Zero(t, w.count()["Snapshots"], "the cloud is not asked while nothing is due")
		mustUnmount(t, l, "data", "1")
	})
}

func TestWhoeverHasTheVolumeTakesTheSnapshotAndOnlyOne(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		var ea, eb events
		time.Sleep(time.Minute)
		la, lb := scheduled2h(t, a.start(t, ea.observe)), b.start(t)
		time.Sleep(2 * time.Hour)
		assert.Equal(t, []string{"01 02:00"}, w.due())
		mustUnmount(t, la, "data", "1")
		mustMount(t, lb, "data", "2")
		time.Sleep(10 * time.Minute)
		assert.Equal(t, []string{"01 02:00"}, w.due(), "it is taken")

		lb.kill() // at 04:00 nobody is there
		time.Sleep(3 * time.Hour)
		assert.Equal(t, []string{"01 02:00"}, w.due())
		lb = b.start(t, eb.observe)
		time.Sleep(2 * time.Minute)
		assert.Equal(t, []string{"01 02:00", "01 04:00"}, w.due())
		assert.Equal(t, 1, eb.found(volume.LateSnapshot))
		mustUnmount(t, lb, "data", "2")

		time.Sleep(2 * time.Hour) // no node has it at 06:00
		assert.Equal(t, []string{"01 02:00", "01 04:00"}, w.due())
		mustMount(t, la, "data", "3")
		time.Sleep(time.Minute)
		assert.Equal(t, []string{"01 02:00", "01 04:00", "01 06:00"}, w.due())
		assert.Equal(t, 1, ea.found(volume.LateSnapshot))
		mustUnmount(t, la, "data", "3")
	})
}

func TestASnapshotThatCannotBeTakenIsTriedAgain(t *testing.T) {
	for _, call := range []string{"cloud.Snapshots", "cloud.Snapshot", "cloud.Snapshot take"} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			var e events
			time.Sleep(time.Minute)
			l := scheduled2h(t, a.start(t, e.observe))
			w.setFault(at(call, failBefore))
			time.Sleep(3 * time.Hour)
			assert.Empty(t, w.due())
			synctest.Wait()
			found := e.found(volume.NoSnapshot)
			assert.Greater(t, found, 5)
			assert.Less(t, found, 20, "not all the time")
			w.setFault(calm)
			time.Sleep(scheduleRetry + scheduleEvery)
			assert.Equal(t, []string{"01 02:00"}, w.due())
			mustUnmount(t, l, "data", "1")
		})
	}
}

func TestASnapshotWhoseAnswerIsLostIsTakenOnce(t *testing.T) {
	for _, f := range []fault{failAfter, crashAfter, crashBefore} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			time.Sleep(time.Minute)
			l := scheduled2h(t, a.start(t))
			time.Sleep(time.Hour)
			w.setFault(at("cloud.Snapshot take", f))
			time.Sleep(time.Hour)
			w.setFault(calm)
			if f != failAfter {
				l.kill()
				l = a.start(t)
			}
			time.Sleep(time.Hour)
			assert.Equal(t, []string{"01 02:00"}, w.due())
			assert.False(t, a.isFrozen())
			mustUnmount(t, l, "data", "1")
		})
	}
}

func TestGarbageIsWhatASchedulesKeepsNoLonger(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t))
		hand, _ := l.taken(t, "data", "by hand")
		w.setFault(at("cloud.DeleteSnapshot", failBefore))
		w.set(func() { w.copying = 0 })
		time.Sleep(10*time.Hour + time.Minute)
		assert.Len(t, w.due(), 5)
		w.setFault(calm)
		garbage, err := l.Garbage(t.Context(), false)
		require.NoError(t, err)
		assert.Len(t, garbage, 2)
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.Remove(within(t), "data"))
		garbage, err = l.Garbage(t.Context(), false)
		require.NoError(t, err)
		assert.Empty(t, garbage, "the last copies of a volume")
		garbage, err = l.Garbage(t.Context(), true)
		require.NoError(t, err)
		assert.Len(t, garbage, 5)
		for _, g := range garbage {
			assert.NotEqual(t, hand.ID, g.ID)
		}
	})
}

func TestTheSnapshotsOfADiskThatIsKeptAreNoGarbage(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t))
		time.Sleep(4 * time.Hour)
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.Forget(within(t), "data", ""))
		time.Sleep(time.Minute)
		synctest.Wait()
		orphans, err := l.Orphans(t.Context())
		require.NoError(t, err)
		require.Len(t, orphans, 1)
		garbage, err := l.Garbage(t.Context(), true)
		require.NoError(t, err)
		assert.Empty(t, garbage, "it may come back, with its schedule's snapshots")
		w.setFault(at("cloud.Orphans", failBefore))
		garbage, err = l.Garbage(t.Context(), true)
		require.Error(t, err, "which disks are kept is not known")
		assert.Empty(t, garbage)
		w.setFault(calm)

		// Another volume has the name, and the disk is deleted in the cloud.
		made(t, l, "data")
		w.set(func() { delete(w.disks, orphans[0].ID) })
		time.Sleep(time.Minute)
		garbage, err = l.Garbage(t.Context(), true)
		require.NoError(t, err)
		require.NotEmpty(t, garbage)
		for _, g := range garbage {
			assert.Equal(t, "its disk does not exist any more: a new volume has its name", g.Why)
		}
		garbage, err = l.Garbage(t.Context(), false)
		require.NoError(t, err)
		assert.Empty(t, garbage)
	})
}

func TestTheLastCopiesOfAVolumeThatCannotBeReadAreNoGarbage(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t))
		time.Sleep(2 * time.Hour)
		made(t, l, "other")
		time.Sleep(time.Minute)
		var twin *disk
		w.set(func() { twin = w.newDisk("data", 1<<30, nil); twin.twin = true }) // the list leaves out both
		garbage, err := l.Garbage(t.Context(), true)
		require.ErrorIs(t, err, providers.ErrAmbiguous)
		assert.Empty(t, garbage)
		w.set(func() { delete(w.disks, twin.ID) })
		time.Sleep(time.Minute)
		mustUnmount(t, l, "data", "1")
	})
}

// A node whose clock was wrong has taken one.
func TestASnapshotOfTheFutureDoesNotEndASchedule(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t))
		time.Sleep(2 * time.Hour)
		future := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		w.set(func() {
			record := maps.Clone(w.snapshots[sorted(w)[0].ID])
			record[volume.KeyTaken] = volume.TakenAt(future)
			w.snapshots["future"] = record
			w.shots["future"] = &providers.Snapshot{ID: "future", Volume: w.byName("data").ID, CreatedAt: time.Now(), State: providers.SnapshotComplete}
		})
		time.Sleep(6 * time.Hour)
		assert.ElementsMatch(t, []string{"01 00:00", "01 04:00", "01 06:00", "01 08:00"}, w.due())
		assert.Equal(t, time.Date(2000, 1, 1, 8, 0, 0, 0, time.UTC), l.Here()[0].LastSnapshot)
		garbage, err := l.Garbage(t.Context(), false)
		require.NoError(t, err)
		assert.Empty(t, garbage)
		mustUnmount(t, l, "data", "1")
	})
}

func TestASnapshotThatWasNotTakenIsNotCalledLate(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		var e events
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t, e.observe))
		w.setFault(at("cloud.Snapshots", failBefore))
		time.Sleep(2*time.Hour + 10*time.Minute)
		due := l.dueSnapshots(t.Context(), time.Now().Add(scheduleRetry))
		require.Len(t, due, 1)
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.takeScheduled(t.Context(), due[0], time.Now()))
		assert.Empty(t, w.snapshots)
		assert.Zero(t, e.found(volume.LateSnapshot))
	})
}

// An alert waits for more hours than lie between two snapshots of most schedules.
func TestASnapshotIsOverdueSinceTheFirstThatWasMissed(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		hour := func(hour int) time.Time { return time.Date(2000, 1, 1, hour, 0, 0, 0, time.UTC) }
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t))
		due := func() time.Time { synctest.Wait(); return l.Here()[0].SnapshotDue }
		time.Sleep(3 * time.Hour)
		assert.Zero(t, due())
		w.setFault(at("cloud.Snapshot", failBefore))
		time.Sleep(6 * time.Hour)
		assert.Equal(t, hour(4), due(), "those due at 4, 6 and 8 o'clock are missed")
		w.setFault(calm)
		w.set(func() { w.copying = 150 * time.Minute })
		time.Sleep(2 * time.Hour)
		assert.Equal(t, hour(4), due(), "that of 8 o'clock is being copied")
		time.Sleep(time.Hour)
		assert.Equal(t, hour(10), due(), "it is complete, and the next is being copied")
		mustUnmount(t, l, "data", "1")
	})
}

func TestTheCloudIsAskedSeldomForASnapshotThatItCopiesForHours(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		time.Sleep(time.Minute)
		l := scheduled2h(t, a.start(t))
		w.set(func() { w.copying = 100 * time.Minute })
		time.Sleep(2 * time.Hour)
		w.count()
		time.Sleep(90 * time.Minute)
		assert.Less(t, w.count()["Snapshots"], 15)
		mustUnmount(t, l, "data", "1")
	})
}
