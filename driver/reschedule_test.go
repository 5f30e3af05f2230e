package driver

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

func (l *life) reschedule(t *testing.T, name, when, keep string) error {
	t.Helper()
	_, err := l.Reschedule(within(t), name, when, keep)
	return err
}

func TestAVolumeThatExistsGetsAScheduleAndLosesItAgain(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		var e events
		time.Sleep(time.Minute)
		l := mounted(t, a.start(t, e.observe), "data", "1")
		time.Sleep(3 * time.Hour)
		require.NoError(t, l.reschedule(t, "data", "0 */2 * * *", "3"))
		info, err := l.Get(within(t), "data")
		require.NoError(t, err)
		assert.Equal(t, "0 */2 * * *", info.Status["snapshot-schedule"])
		assert.Equal(t, "3", info.Status["snapshot-keep"])
		assert.NotContains(t, info.Status, volume.KeySince)
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		assert.Empty(t, w.due(), "what was due before it had the schedule is not late")
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		assert.Equal(t, []string{"01 04:00", "01 06:00"}, w.due())
		assert.Zero(t, e.found(volume.LateSnapshot))

		// Another node, which has the volume next, goes on, and with another count.
		lb := b.start(t)
		require.ErrorIs(t, lb.reschedule(t, "data", "", "1"), volume.Held)
		mustUnmount(t, l, "data", "1")
		mustMount(t, lb, "data", "2")
		require.NoError(t, lb.reschedule(t, "data", "", "1"))
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Equal(t, []string{"01 08:00"}, w.due())
		assert.Equal(t, "0 */2 * * *", w.disk("data").Record[volume.KeySchedule])

		for range 2 {
			require.NoError(t, lb.reschedule(t, "data", volume.NoSchedule, ""))
		}
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		assert.Equal(t, []string{"01 08:00"}, w.due(), "those that were taken stay")
		info, err = lb.Get(within(t), "data")
		require.NoError(t, err)
		assert.NotContains(t, info.Status, "snapshot-schedule")
		mustUnmount(t, lb, "data", "2")
	})
}

func TestANodeThatMountsAVolumeWhileItsScheduleIsChangedIsTold(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := made(t, a.start(t), "data"), b.start(t)
		time.Sleep(time.Minute)
		_, err := lb.Get(within(t), "data")
		require.NoError(t, err)
		changed := make(chan error)
		go func() { changed <- la.reschedule(t, "data", "@hourly", "") }()
		time.Sleep(time.Second)
		mustMount(t, lb, "data", "1")
		err = <-changed
		require.ErrorIs(t, err, volume.Held)
		require.ErrorContains(t, err, "node b has mounted the volume while its schedule was changed")
		require.NoError(t, lb.reschedule(t, "data", "@hourly", ""))
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		assert.Len(t, w.due(), 2)
		mustUnmount(t, lb, "data", "1")
		require.NoError(t, la.reschedule(t, "data", volume.NoSchedule, ""), "nobody mounts it")
	})
}

func TestAScheduleIsCheckedAsAtACreate(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		made(t, l, "data")
		before := w.disk("data").Record
		for _, wrong := range []struct{ when, keep string }{
			{"every day", ""}, {"@every 1h", ""}, {"TZ=CET @daily", ""}, {"@daily", "seven"}, {"", "7"}, {volume.NoSchedule, "7"}, {"@daily", "7\n"},
		} {
			require.ErrorIs(t, l.reschedule(t, "data", wrong.when, wrong.keep), volume.Invalid, "%q", wrong)
		}
		assert.Equal(t, before, w.disk("data").Record)
		require.ErrorIs(t, l.reschedule(t, "none", "@daily", ""), providers.ErrNotFound)
	})
}
