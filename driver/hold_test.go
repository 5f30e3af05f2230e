package driver

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

// holds has a command of that id hold the volume; a process of it has the volume mounted until the command ends.
func holds(t *testing.T, l *life, name, id string) (end func()) {
	t.Helper()
	path, err := l.Hold(within(t), name, id)
	require.NoError(t, err)
	require.NotEmpty(t, path)
	require.True(t, l.machine.container(name, "cmd-"+id))
	return func() { l.machine.containerEnds("cmd-" + id) }
}

func TestACommandHasAVolumeForItself(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := a.start(t, probing)
		require.NoError(t, l.Create(within(t), "data", nil))
		end := holds(t, l, "data", "one")
		assert.Equal(t, "a", w.holder("data"))
		path, err := l.Hold(within(t), "data", "one")
		require.NoError(t, err, "its answer was lost")
		assert.NotEmpty(t, path)

		_, err = l.Mount(within(t), "data", "1")
		require.ErrorIs(t, err, volume.Busy)
		require.ErrorContains(t, err, "an operator's command on this node fills the volume")
		_, err = l.Hold(within(t), "data", "two")
		require.ErrorIs(t, err, volume.InUse)
		require.ErrorContains(t, err, "in use by container of-cmd-one")
		require.ErrorIs(t, l.Release(within(t), "data"), volume.InUse)
		require.ErrorIs(t, l.Remove(within(t), "data"), volume.InUse)
		require.NoError(t, l.Drop(within(t), "data", "another"))
		assert.Equal(t, "a", w.holder("data"))

		end()
		require.NoError(t, l.Drop(within(t), "data", "one"))
		assert.Empty(t, w.holder("data"), "it is released at once, as after no probe")
		require.NoError(t, l.Drop(within(t), "data", "one"))
		mounted(t, l, "data", "1")
	})
}

func TestACommandDoesNotGetAVolumeThatAContainerUses(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		_, err := l.Hold(within(t), "data", "one")
		require.ErrorIs(t, err, volume.InUse)
		require.ErrorContains(t, err, "in use by container of-1 on this node")
		a.containerEnds("1")
		_, err = l.Hold(within(t), "data", "one")
		require.ErrorIs(t, err, volume.InUse, "another may be about to start")
		mustUnmount(t, l, "data", "1")
		holds(t, l, "data", "one")()
		require.NoError(t, l.Drop(within(t), "data", "one"))
		_, err = l.Hold(within(t), "none", "one")
		require.ErrorIs(t, err, volume.NotFound)
	})
}

func TestACommandThatDiedDoesNotKeepTheVolume(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		holds(t, l, "data", "one")() // and is killed
		end := holds(t, l, "data", "two")
		end()
		require.NoError(t, l.Drop(within(t), "data", "two"))
		assert.Empty(t, w.holder("data"), "nor the next")
		holds(t, l, "data", "three")() // and is killed
		time.Sleep(time.Hour)
		assert.Empty(t, w.holder("data"), "nor from other nodes")
		mounted(t, l, "data", "1")
	})
}

func TestACommandGoesOnWhileThePluginRestarts(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", nil))
		end := holds(t, l, "data", "one")
		l.kill()
		l = a.start(t)
		time.Sleep(time.Hour)
		assert.Equal(t, "a", w.holder("data"))
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorIs(t, err, volume.Busy)
		end()
		require.NoError(t, l.Drop(within(t), "data", "one"))
		assert.Empty(t, w.holder("data"))
	})
}
