package driver

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

// events are what an observer was told.
type events struct {
	mu  sync.Mutex
	all []volume.Event
}

func (e *events) observe(c *Config) {
	c.Observer = func(event volume.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.all = append(e.all, event)
	}
}

// take returns the events of a kind since the last call for it.
func take[E volume.Event](e *events) (of []E) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = slices.DeleteFunc(e.all, func(event volume.Event) bool {
		is, ok := event.(E)
		if ok {
			of = append(of, is)
		}
		return ok
	})
	return of
}

func TestAnObserverIsToldOfPhasesAndCalls(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		var e events
		l := made(t, a.start(t, e.observe), "data")
		assert.Equal(t, []volume.CallEnded{{Volume: "data", Op: volume.Create}}, take[volume.CallEnded](&e))
		synctest.Wait() // the last phase ends after the answer
		take[volume.PhaseEnded](&e)
		w.set(func() { w.arrival = 2 * time.Second })
		mustMount(t, l, "data", "1")
		synctest.Wait()
		took := map[volume.Phase]time.Duration{}
		for _, p := range take[volume.PhaseEnded](&e) {
			assert.Equal(t, "data", p.Volume)
			took[p.Phase] += p.Took
		}
		assert.Equal(t, map[volume.Phase]time.Duration{
			volume.Reconciling: 0, volume.WaitingForCloud: 0, volume.Attaching: 0, volume.WaitingForDevice: 2 * time.Second,
			volume.Formatting: 0, volume.Checking: 0, volume.Mounting: 0,
		}, took)
		assert.Equal(t, []volume.CallEnded{{Volume: "data", Op: volume.Mount, Took: 2 * time.Second}}, take[volume.CallEnded](&e))
		mustMount(t, l, "data", "2")
		synctest.Wait()
		for _, p := range take[volume.PhaseEnded](&e) {
			assert.Equal(t, volume.Reconciling, p.Phase, "nothing was mounted")
		}
		take[volume.CallEnded](&e)
		require.Error(t, l.Remove(within(t), "data"))
		calls := take[volume.CallEnded](&e)
		require.Len(t, calls, 1)
		require.ErrorIs(t, calls[0].Err, volume.InUse)
		assert.Equal(t, volume.Remove, calls[0].Op)
	})
}

func TestAnObserverIsToldOfATakeoverWithItsEvidence(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, a.start(t), "data", "1").kill()
		a.powerOff()
		var e events
		mustMount(t, b.start(t, e.observe), "data", "2")
		assert.Equal(t, []volume.TakenOver{{Volume: "data", ID: "vol-1", Holder: "a", Evidence: "machine a is stopped"}}, take[volume.TakenOver](&e))
	})
}

func TestAnObserverIsToldOfFindings(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		var e events
		mounted(t, a.start(t, e.observe), "data", "1")
		a.containerEnds("1") // and no Unmount comes
		w.setFault(at("cloud.Detach", failBefore))
		time.Sleep(5 * time.Minute)
		found := take[volume.Found](&e)
		assert.Equal(t, volume.Found{Volume: "data", Finding: volume.Abandoned}, found[0])
		for _, f := range found[1:] {
			assert.Equal(t, volume.Found{Volume: "data", Finding: volume.Unreleased}, f)
		}
		assert.Greater(t, len(found), 2)
	})
}
