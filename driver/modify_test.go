package driver

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

// steps notes the steps that it is told of.
type steps []volume.Phase

func (p *steps) note(s volume.Step) { *p = append(*p, s.Phase) }

func TestResizeGrowsTheFileSystemInUseOnceTheDeviceShowsTheNewSize(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.sizeLag = 20 * time.Second
		var told steps
		outcome, err := l.Modify(within(t), "data", Change{Size: 40 << 30}, told.note)
		require.NoError(t, err)
		assert.Equal(t, "the disk and its file system have 40GiB", outcome)
		assert.Equal(t, int64(40<<30), a.sizeIn("data"))
		assert.Equal(t, steps{volume.Modifying, volume.WaitingForSize, volume.Growing}, told)

		// Once more, as after an answer that was lost.
		_, err = l.Modify(within(t), "data", Change{Size: 40 << 30}, told.note)
		require.NoError(t, err)

		outcome, err = b.start(t).Modify(within(t), "data", Change{Size: 50 << 30}, told.note)
		require.NoError(t, err)
		assert.Equal(t, "the disk has 50GiB; its file system grows on node a, where it is mounted, within 30s", outcome)
		time.Sleep(reconcileEvery + w.sizeLag)
		assert.Equal(t, int64(50<<30), a.sizeIn("data"))
	})
}

func TestResizeOfADetachedVolumeGrowsItAtTheNextMount(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		var told steps
		outcome, err := l.Modify(within(t), "data", Change{Size: 40 << 30}, told.note)
		require.NoError(t, err)
		assert.Equal(t, "the disk has 40GiB; its file system grows when it is next mounted", outcome)
		mustMount(t, l, "data", "1")
		assert.Equal(t, int64(40<<30), a.sizeIn("data"))
		a.containerEnds("1")
	})
}

func TestResizeThatCannotBeDoneSaysWhy(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		var told steps
		for _, c := range []struct {
			name   string
			change Change
			code   volume.Code
		}{
			{"data", Change{Size: 1}, volume.Invalid},
			{"data", Change{Type: "fast"}, volume.Invalid},
			{"none", Change{Size: 40 << 30}, volume.NotFound},
		} {
			_, err := l.Modify(within(t), c.name, c.change, told.note)
			require.ErrorIs(t, err, c.code)
		}

		w.setFault(at("host.Grow", failBefore))
		_, err := l.Modify(within(t), "data", Change{Size: 40 << 30}, told.note)
		require.ErrorIs(t, err, errInjected)
		require.ErrorContains(t, err, "the disk has 40GiB, its file system has not grown yet")
		w.setFault(calm)
		time.Sleep(time.Hour)
		require.NotEqual(t, int64(40<<30), a.sizeIn("data"), "what failed is not tried again by itself")
		_, err = l.Modify(within(t), "data", Change{Size: 40 << 30}, told.note)
		require.NoError(t, err)
		assert.Equal(t, int64(40<<30), a.sizeIn("data"))

		w.sizeLag = time.Hour
		late, cancel := context.WithTimeout(context.Background(), 2*sizeTimeout)
		defer cancel()
		_, err = l.Modify(late, "data", Change{Size: 50 << 30}, told.note)
		require.ErrorContains(t, err, "still has 40GiB")
		time.Sleep(w.sizeLag + reconcileEvery)
		assert.Equal(t, int64(50<<30), a.sizeIn("data"), "it grows by itself once the kernel shows the size")
	})
}

func TestReleaseLetsGoAtOnceOfWhatNothingUses(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t, probing), "data", "1")
		err := l.Release(within(t), "data")
		require.ErrorIs(t, err, volume.InUse)
		require.ErrorContains(t, err, `in use by container of-1 on this node (volume "data", vol-1, node a); stop what uses it first`)
		assert.Equal(t, "a", w.holder("data"))
		require.NoError(t, l.Release(within(t), "none"))

		a.containerEnds("1")
		require.ErrorIs(t, l.Release(within(t), "data"), volume.InUse, "its Unmount has not come: another may be about to use it")
		assert.Equal(t, "a", w.holder("data"))
		time.Sleep(time.Second)
		mustUnmount(t, l, "data", "1")

		path, err := l.Mount(within(t), "data", "2")
		require.NoError(t, err)
		require.NotEmpty(t, path)
		require.ErrorIs(t, l.Release(within(t), "data"), volume.InUse, "its container is about to start")
		mustUnmount(t, l, "data", "2") // at once: it may have been the copy-up probe, so the volume is kept
		require.Equal(t, "a", w.holder("data"))
		require.NoError(t, l.Release(within(t), "data"))
		assert.Empty(t, w.holder("data"))
	})
}
