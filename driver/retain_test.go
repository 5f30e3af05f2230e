package driver

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

func TestForgetKeepsTheDisk(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		id := w.disk("data").ID
		require.ErrorIs(t, l.Forget(within(t), "data", ""), volume.InUse)
		require.ErrorIs(t, b.start(t).Forget(within(t), "data", ""), volume.Held)
		require.NotNil(t, w.disk("data"))
		assert.Empty(t, w.disk("data").Record[volume.KeyReclaim], "what is refused changes nothing")
		a.container("data", "1")
		mustUnmount(t, l, "data", "1")

		require.NoError(t, l.Forget(within(t), "data", ""))
		require.NoError(t, l.Forget(within(t), "data", ""), "once more")
		assert.Nil(t, w.disk("data"))
		require.NoError(t, l.Create(within(t), "again", map[string]string{"volume-id": id}))
		mustMount(t, l, "again", "2")
		a.containerEnds("2")
	})
}

func TestForgetThatDiesKeepsTheDiskFromThenOn(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		id := w.disk("data").ID
		w.setFault(at("cloud.Forget", crashBefore))
		require.Error(t, l.Forget(within(t), "data", ""))
		l.kill()
		w.setFault(calm)
		require.NoError(t, a.start(t).Remove(within(t), "data"), "and it is removed as usual")
		assert.NotNil(t, w.disks[id])
	})
}

func TestRetainKeepsTheDiskOfAVolumeThatIsRemovedLater(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		id := w.disk("data").ID
		require.NoError(t, b.start(t).Retain(within(t), "data"), "also of one in use elsewhere")
		require.ErrorIs(t, l.Retain(within(t), "none"), volume.NotFound)
		mustUnmount(t, l, "data", "1")
		require.NoError(t, l.Remove(within(t), "data"))
		assert.NotNil(t, w.disks[id])
	})
}

func TestAVolumeThatHasTheNameOfOneThatWasToBeRemovedStays(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := made(t, a.start(t), "data")
		meant := w.disk("data").ID
		require.NoError(t, l.RemoveDisk(within(t), "data", meant))
		require.NoError(t, l.RemoveDisk(within(t), "data", meant), "once more")
		made(t, b.start(t), "data")
		time.Sleep(time.Minute)
		require.ErrorIs(t, l.RemoveDisk(within(t), "data", meant), volume.Conflict)
		require.ErrorIs(t, l.Forget(within(t), "data", meant), volume.Conflict)
		require.NotNil(t, w.disk("data"))
		assert.Empty(t, w.disk("data").Record[volume.KeyReclaim])
		require.NoError(t, l.Forget(within(t), "data", w.disk("data").ID))
	})
}
