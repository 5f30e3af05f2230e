package driver

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/peer"
	"github.com/blockvol/blockvol/providers"
)

// A cloud may take minutes. What one node has begun counts for all of them.
func TestTwoNodesDoNotHaveEachOtherPoweredOffWhileTheCloudTakesItsTime(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, a.start(t, withFence), "data", "1")
		mounted(t, b.start(t, withFence), "other", "2")
		time.Sleep(2 * time.Minute)
		w.set(func() { w.part("a", "b", time.Now().Add(20*time.Minute)) })
		first := wanting(t, b, "data", 6*time.Minute)
		second := wanting(t, a, "other", 6*time.Minute)
		both := false
		for range 300 {
			time.Sleep(time.Second)
			w.set(func() { both = both || a.off && b.off })
		}
		assert.False(t, both)
		assert.Positive(t, w.figure("fences"))
		_, _ = <-first, <-second
		w.settlePower(nil)
	})
}

func withFile(file string) func(*Config) {
	return func(c *Config) {
		withFence(c)
		l := c.Host.(*fakeHost).life
		self := func(context.Context) (string, error) { return l.machine.name, nil }
		l.members = peer.NewMembers(self, fakePeers{l}, file, c.Log)
		c.Peers, c.Fencing = l.members, controller.Fencing{Witnesses: l.members}
	}
}

// All are started in the morning, and the one that had the volume last.
func TestANodeThatStartsLaterIsNotPoweredOff(t *testing.T) {
	dir := t.TempDir()
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		c := w.machine("c")
		f := func(m *machine) func(*Config) { return withFile(filepath.Join(dir, m.name)) }
		mounted(t, a.start(t, f(a)), "data", "1")
		b.start(t, f(b))
		c.start(t, f(c))
		time.Sleep(2 * time.Minute)
		for _, m := range []*machine{a, b, c} {
			m.current.members.Leave(within(t))
			m.powerOff()
		}
		time.Sleep(10 * time.Hour)
		for _, m := range []*machine{a, b, c} {
			m.powerOn()
		}
		b.start(t, f(b))
		c.start(t, f(c))
		result := wanting(t, b, "data", 80*time.Second)
		require.Error(t, <-result)
		assert.Zero(t, w.figure("fences"))
	})
}

// Of two volumes that were waited for at once.
func TestANodeThatAnOperatorSwitchesOffStaysOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		mounted(t, a.current, "other", "3")
		a.current.dead.Store(true)
		first, second := wanting(t, b, "data", 2*time.Minute), wanting(t, b, "other", 2*time.Minute)
		powered(t, w, a, time.Minute)
		require.NoError(t, <-first)
		require.NoError(t, <-second)
		time.Sleep(2 * time.Minute)
		w.settlePower(func(m *machine) { m.start(t, withFence, withReboot) })
		require.Equal(t, providers.Running, a.life)
		time.Sleep(20 * time.Minute)
		before := w.figure("restarts after a fence")
		a.powerOff() // by an operator, on purpose
		time.Sleep(24 * time.Hour)
		assert.Equal(t, before, w.figure("restarts after a fence"))
	}, withReboot)
}

func TestANodeIsStartedAgainHoweverLongTheAttachTakes(t *testing.T) {
	var busy atomic.Bool
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		a.current.dead.Store(true)
		result := wanting(t, b, "data", 5*time.Minute)
		for w.figure("fences") == 0 {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(50 * time.Second)
		busy.Store(true)
		w.settlePower(nil)
		time.Sleep(15 * time.Second)
		busy.Store(false)
		require.NoError(t, <-result)
		time.Sleep(16 * time.Minute)
		assert.Positive(t, w.figure("restarts after a fence"))
	}, withReboot, func(c *Config) {
		if p, is := c.Provider.(*fakeProvider); is {
			c.Provider = busyProvider{p, &busy}
		}
	})
}

// busyProvider refuses attaches for a while.
type busyProvider struct {
	*fakeProvider
	busy *atomic.Bool
}

func (p busyProvider) Attach(ctx context.Context, id, node string) error {
	if p.busy.Load() {
		return providers.ErrBusy
	}
	return p.fakeProvider.Attach(ctx, id, node)
}

// The cloud's word decides, not the answer to the request.
func TestANodeIsStartedAgainAlsoIfTheAnswerWasLost(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		a.current.dead.Store(true)
		w.setFault(at("cloud.PowerOff", failAfter))
		result := wanting(t, b, "data", 5*time.Minute)
		powered(t, w, a, time.Minute)
		require.NoError(t, <-result)
		time.Sleep(16 * time.Minute)
		assert.Positive(t, w.figure("restarts after a fence"))
	}, withReboot)
}

func TestANodeThatIsBeingStartedAgainIsNotPoweredOffAgain(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		mounted(t, a.current, "other", "3")
		takenByFence(t, w, a, b)
		for w.figure("restarts after a fence") == 0 {
			time.Sleep(time.Second)
		}
		a.powerOn() // it runs, but its engine takes another minute
		w.set(func() { a.starts = false })
		second := wanting(t, c, "other", 2*time.Minute)
		time.Sleep(time.Minute)
		assert.Equal(t, 1, w.figure("fences"))
		a.start(t, withFence, withReboot)
		require.NoError(t, <-second)
	}, withReboot)
}

// slowProvider lists volumes late.
type slowProvider struct {
	*fakeProvider
	slow *atomic.Bool
}

func (p slowProvider) List(ctx context.Context) ([]*providers.Volume, error) {
	if p.slow.Load() {
		time.Sleep(90 * time.Second)
	}
	return p.fakeProvider.List(ctx)
}

// The holder has been back for long when the cloud answers the last question.
func TestNoNodeIsPoweredOffOnOldEvidence(t *testing.T) {
	var slow atomic.Bool
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		w.set(func() { w.isolate(a, time.Now().Add(28*time.Second)) })
		result := wanting(t, b, "data", 3*time.Minute)
		time.Sleep(18 * time.Second)
		require.NotEmpty(t, w.disk("data").Record["fence"], "it is claimed")
		slow.Store(true)
		time.Sleep(140 * time.Second)
		assert.Zero(t, w.figure("fences"))
		require.Error(t, <-result)
	}, func(c *Config) {
		if p, is := c.Provider.(*fakeProvider); is {
			c.Provider = slowProvider{p, &slow}
		}
	})
}
