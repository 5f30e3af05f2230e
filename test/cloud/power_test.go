package cloud_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
)

// machines notes in a backend's notes when machines are switched.
type machines struct {
	*backend
	fails error
}

func (m machines) PowerOff(string) error { return errors.Join(m.note("power off"), m.fails) }
func (m machines) PowerOn(string) error  { return errors.Join(m.note("power on"), m.fails) }

func stop(t *testing.T, c *cloud.Cloud, id string, hard bool) (was cloud.InstanceState) {
	t.Helper()
	do(t, c, func(r *cloud.Request) (err error) { was, err = r.Stop(id, hard); return err })
	return was
}

func start(t *testing.T, c *cloud.Cloud, id string) (was cloud.InstanceState) {
	t.Helper()
	do(t, c, func(r *cloud.Request) (err error) { was, err = r.Start(id); return err })
	return was
}

func instanceState(c *cloud.Cloud, id string) cloud.InstanceState {
	i, _ := c.Instance(id)
	return i.State
}

func TestRequestsSwitchMachines(t *testing.T) {
	b := &backend{}
	inBubble(t, cloud.Config{Times: times, Backend: b, Machines: machines{b, nil}}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{}).ID
		v := create(t, c)
		after(times.Create)
		attach(t, c, v, i)
		after(times.Attach)
		b.take()

		assert.Equal(t, cloud.Running, stop(t, c, i, true))
		assert.Equal(t, cloud.Stopping, stop(t, c, i, true), "a second time")
		after(times.Stop - time.Second)
		assert.Empty(t, b.take(), "the machine runs until the end")
		assert.Equal(t, cloud.Stopping, instanceState(c, i))
		after(time.Second)
		assert.Equal(t, []string{"power off", "detach " + i + " true"}, b.take())
		assert.Equal(t, cloud.Stopped, instanceState(c, i))
		assert.Equal(t, "in-use attached", state(c, v))
		assert.Equal(t, cloud.Stopped, stop(t, c, i, true), "it is off already")

		assert.Equal(t, cloud.Stopped, start(t, c, i))
		assert.Equal(t, cloud.Pending, start(t, c, i))
		do(t, c, func(r *cloud.Request) error {
			_, err := r.Stop(i, true)
			require.ErrorIs(t, err, cloud.ErrState)
			return nil
		})
		after(times.Stop)
		assert.Equal(t, []string{"power on", "attach " + i}, b.take())
		assert.Equal(t, cloud.Running, start(t, c, i), "it runs already")
		after(time.Hour)
		assert.Empty(t, b.take())

		c.Stop(i)
		after(times.Stop)
		assert.Equal(t, []string{"detach " + i + " true"}, b.take(), "the test itself switches the machine")
		assert.Empty(t, c.Problems())
	})
}

func TestShutdownWaitsForTheGuestUnlessHard(t *testing.T) {
	times := times
	times.Shutdown = time.Minute
	inBubble(t, cloud.Config{Times: times}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{}).ID
		stop(t, c, i, false)
		after(times.Stop + time.Minute - time.Second)
		assert.Equal(t, cloud.Stopping, instanceState(c, i))
		after(time.Second)
		assert.Equal(t, cloud.Stopped, instanceState(c, i))
		start(t, c, i)
		after(times.Stop)

		stop(t, c, i, false)
		stop(t, c, i, true)
		stop(t, c, i, false)
		after(times.Stop)
		assert.Equal(t, cloud.Stopped, instanceState(c, i))
		start(t, c, i)
		after(time.Hour)
		assert.Equal(t, cloud.Running, instanceState(c, i), "the first stop has no effect any more")
	})
}

func TestStopCanBeStuckHiddenOrFail(t *testing.T) {
	b := &backend{}
	m := machines{b, errors.New("no power switch")}
	inBubble(t, cloud.Config{Times: times, Backend: b, Machines: m}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{}).ID
		c.Inject(cloud.Rule{Fault: cloud.NeverFinish, Times: 1})
		stop(t, c, i, true)
		c.HideStopping(true)
		do(t, c, func(r *cloud.Request) error {
			assert.Equal(t, cloud.Running, r.Instances()[0].State)
			return nil
		})
		c.HideStopping(false)
		after(time.Hour)
		assert.Equal(t, cloud.Stopping, instanceState(c, i))
		assert.Equal(t, cloud.Stopping, stop(t, c, i, true))
		after(times.Stop)
		assert.Equal(t, cloud.Stopping, instanceState(c, i))
		require.Len(t, c.Problems(), 1)
		require.ErrorIs(t, c.Problems()[0], m.fails)
		synctest.Wait()
	})
}
