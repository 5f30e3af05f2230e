package driver

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
)

// fakePeers carries questions to the plugin of another machine, unless something is in the way.
type fakePeers struct{ *life }

var errUnreachable = errors.New("no route")

// Ask implements controller.Peers.
func (p fakePeers) Ask(ctx context.Context, _ []netip.Addr, want volume.Want) (volume.Holding, error) {
	p.machine.awaitGoingOn()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	w, fault := p.machine.world, p.draw("peer.Ask")
	w.mu.Lock()
	var driver *Driver
	var other *life
	if m := w.machines[want.To]; m != nil && !w.parted(p.machine.name, want.To) && !time.Now().Before(m.frozen) {
		driver, other = m.answers, m.answering
	}
	w.mu.Unlock()
	switch {
	case p.dead.Load():
		return volume.Holding{}, errDead
	case fault == hang:
		<-ctx.Done()
		return volume.Holding{}, ctx.Err()
	case fault == failBefore, other == nil || other.dead.Load():
		return volume.Holding{}, errUnreachable
	}
	holding, err := driver.Yield(ctx, want)
	if fault != noFault || other.dead.Load() {
		return volume.Holding{}, errInjected
	}
	if err == nil {
		w.note("answers of peers")
		if holding.State == volume.HoldsNothing && want.Known != "" {
			w.note("hand-overs")
		}
	}
	return holding, err
}

// withPeers lets a plugin ask others.
func withPeers(c *Config) {
	host, is := c.Host.(*fakeHost)
	if !is {
		panic("the host is not the world's own")
	}
	c.Peers = fakePeers{host.life}
}

// handOver is a scene in which the plugins can ask each other, and the cloud asked for nothing while others wait.
func handOver(t *testing.T, story func(t *testing.T, w *world, a, b *life)) {
	t.Helper()
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		story(t, w, a.start(t, withPeers), b.start(t, withPeers))
	})
}

func TestAVolumeThatIsKeptIsHandedOverAtOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := mounted(t, a.start(t, probing, withPeers), "data", "probe"), b.start(t, withPeers)
		mustUnmount(t, la, "data", "probe") // kept for probeGrace
		require.Equal(t, "mounted", status(t, la, "data")["state"])
		begin := time.Now()
		mustMount(t, lb, "data", "1")
		assert.Less(t, time.Since(begin), time.Second, "the copy-up probe's grace costs another node nothing")
	})
}

func TestTheEndOfAWaitIsToldByTheHolder(t *testing.T) {
	handOver(t, func(t *testing.T, w *world, la, lb *life) {
		mounted(t, la, "data", "1")
		result := make(chan error, 1)
		go func() {
			_, err := lb.Mount(within(t), "data", "2")
			result <- err
		}()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		w.set(func() { clear(w.calls) })
		mustUnmount(t, la, "data", "1")
		begin := time.Now()
		require.NoError(t, <-result)
		assert.LessOrEqual(t, time.Since(begin), 300*time.Millisecond)
		w.mu.Lock()
		defer w.mu.Unlock()
		assert.LessOrEqual(t, w.calls["cloud.Find"]+w.calls["cloud.NodeState"]+w.calls["cloud.Attach"], 2, "%v", w.calls)
	})
}

func TestWhoUsesAVolumeIsToldOnBothNodes(t *testing.T) {
	handOver(t, func(t *testing.T, _ *world, la, lb *life) {
		mounted(t, la, "data", "1")
		_, err := lb.Mount(within(t), "data", "2")
		require.ErrorIs(t, err, volume.Unfinished)
		assert.Contains(t, err.Error(), "in use on node a by ")
		assert.Contains(t, err.Error(), "(since 2000-01-01 ")
		assert.Contains(t, err.Error(), "stop its container on node a")
		assert.Equal(t, "b", status(t, la, "data")["wanted-by"])
		time.Sleep(2 * time.Minute)
		assert.NotContains(t, status(t, la, "data"), "wanted-by", "nobody waits any more")
	})
}

func TestAHolderThatAnswersIsNotTakenFrom(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		always := func(c *Config) { c.Takeover = controller.TakeoverAlways }
		la, lb := mounted(t, a.start(t, withPeers), "data", "1"), b.start(t, always, withPeers)
		for range 4 {
			_, err := lb.Mount(within(t), "data", "2")
			require.ErrorIs(t, err, volume.Unfinished)
		}
		w.mu.Lock()
		assert.True(t, w.byName("data").HeldBy("a"))
		w.part("a", "b", time.Now().Add(time.Hour))
		w.mu.Unlock()
		la.kill() // else it is a violation, which this policy accepts
		a.powerOff()
		mustMount(t, lb, "data", "3")
	})
}

func TestANodeThatCannotBeAskedIsWaitedForAsWithoutPeers(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		log, hook := logtest.NewNullLogger()
		la, lb := mounted(t, a.start(t, withPeers), "data", "1"), b.start(t, withPeers, func(c *Config) { c.Log = log })
		w.set(func() { w.part("a", "b", time.Now().Add(time.Hour)) })
		result := make(chan error, 1)
		go func() {
			_, err := lb.Mount(within(t), "data", "2")
			result <- err
		}()
		time.Sleep(10 * time.Second)
		mustUnmount(t, la, "data", "1")
		require.NoError(t, <-result)
		assert.Equal(t, 1, messages(hook, "The node that holds the volume cannot be asked: the cloud is"))
	})
}

func TestANodeIsNotAskedForAVolumeThatNobodyWaitsForAnyMore(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la := mounted(t, a.start(t, withPeers, func(c *Config) { c.Probe = time.Minute }), "data", "probe")
		lb := b.start(t, withPeers)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := lb.Mount(ctx, "data", "1")
		require.ErrorIs(t, err, volume.Unfinished)
		time.Sleep(5 * time.Second) // its work goes on for somebody to come back
		w.set(func() { clear(w.calls) })
		mustUnmount(t, la, "data", "probe")
		time.Sleep(time.Second)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		assert.Zero(t, w.calls["peer.Ask"])
		assert.True(t, w.byName("data").HeldBy("a"))
	})
}

// The cloud goes on to call this node the holder, although the one that it means has nothing.
func TestANodeThatSaysItHasNothingIsBelievedOnlyByTryingToAttach(t *testing.T) {
	handOver(t, func(t *testing.T, w *world, la, lb *life) {
		made(t, la, "data")
		w.set(func() { // by hand, where no device comes
			d := w.byName("data")
			d.Attachment.Node, d.Attachment.State = "a", "attached"
			d.present = time.Now().Add(time.Hour)
		})
		_, err := lb.Mount(within(t), "data", "1")
		require.ErrorIs(t, err, volume.Unfinished)
		w.mu.Lock()
		defer w.mu.Unlock()
		assert.True(t, w.byName("data").HeldBy("a"))
		assert.LessOrEqual(t, w.calls["cloud.Attach"], 20)
	})
}

func TestOnlyTheNodeThatIsMeantAnswers(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		la := mounted(t, a.start(t), "data", "1")
		_, err := la.Yield(within(t), volume.Want{From: "b", To: "c", Volume: "data", Disk: "vol-1"})
		require.EqualError(t, err, "this is not node c")
		mustUnmount(t, la, "data", "1")
		holding, err := la.Yield(within(t), volume.Want{From: "b", To: "a", Volume: "no such", Disk: "vol-1"})
		require.NoError(t, err)
		assert.Equal(t, volume.Holding{State: volume.HoldsNothing}, holding)
		la.mu.Lock()
		defer la.mu.Unlock()
		assert.NotContains(t, la.volumes, "no such", "strange questions leave nothing behind")
	})
}

// It is certainly alive, and what it has not written to the disk yet would be lost.
func TestAHolderThatCannotUnmountYetIsNotTakenFrom(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		always := func(c *Config) { c.Takeover = controller.TakeoverAlways }
		la, lb := mounted(t, a.start(t, withPeers), "data", "1"), b.start(t, always, withPeers)
		w.set(func() { a.mounts["serial-1"].busy = time.Now().Add(2 * time.Minute) })
		a.containerEnds("1")
		require.Error(t, la.Unmount(within(t), "data", "1"))
		_, err := lb.Mount(limited(t, time.Minute), "data", "2")
		require.ErrorContains(t, err, "node a is not done with it: ")
		w.mu.Lock()
		held := w.byName("data").HeldBy("a")
		w.mu.Unlock()
		require.True(t, held)
		_, err = lb.Mount(limited(t, 3*time.Minute), "data", "3")
		require.NoError(t, err, "once it is unmounted")
		require.True(t, b.container("data", "3"))
		mustUnmount(t, lb, "data", "3")
	})
}
