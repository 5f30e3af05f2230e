package driver

import (
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAVolumeThatWasEnlargedInUseGrows(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		time.Sleep(time.Minute)
		size := w.disk("data").Size
		for range 3 {
			w.count()
			w.cloud.enlarge("data")
			time.Sleep(reconcileEvery + time.Second)
			size *= 2
			assert.Equal(t, size, a.sizeIn("data"))
			time.Sleep(time.Hour)
			assert.Equal(t, 1, w.grows())
		}
		w.cloud.enlarge("data")
		mustUnmount(t, l, "data", "1")
		mustMount(t, b.start(t), "data", "2")
		assert.Equal(t, 2*size, b.sizeIn("data"))
	})
}

func TestAVolumeThatWasEnlargedWhileThePluginWasDownGrows(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		w.cloud.enlarge("data")
		a.start(t)
		time.Sleep(reconcileEvery + time.Second)
		assert.Equal(t, w.disk("data").Size, a.sizeIn("data"))
	})
}

func TestAFileSystemThatCannotGrowIsToldOncePerSize(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		log, hook := logtest.NewNullLogger()
		mounted(t, a.start(t, func(c *Config) { c.Log = log }), "data", "1")
		w.setFault(at("host.Grow", failBefore))
		for size := range 2 {
			w.cloud.enlarge("data")
			time.Sleep(time.Hour)
			warned := 0
			for _, e := range hook.AllEntries() {
				if e.Level == logrus.WarnLevel {
					warned++
					assert.Equal(t, "data", e.Data["volume"])
					require.ErrorIs(t, e.Data[logrus.ErrorKey].(error), errInjected)
				}
			}
			assert.Equal(t, size+1, warned)
		}
		assert.Equal(t, "a", w.holder("data"), "it serves on")
		w.setFault(calm)
		w.count()
		a.engineTakesMounts()
		mustMount(t, a.current, "data", "2")
		time.Sleep(reconcileEvery + time.Second)
		assert.Equal(t, 1, w.grows(), "with the next mount it is tried again")
	})
}
