package driver

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/peer"
	"github.com/blockvol/blockvol/providers"
)

// Greet implements peer.Transport: a hello reaches the other machine's plugin unless something is in the way.
func (p fakePeers) Greet(ctx context.Context, to string, _ []netip.Addr, hello peer.Hello) (peer.Hello, error) {
	w := p.machine.world
	w.mu.Lock()
	var members *peer.Members
	var other *life
	if m := w.machines[to]; m != nil && !w.parted(p.machine.name, to) && m.answering != nil {
		other, members = m.answering, m.answering.members
	}
	w.mu.Unlock()
	switch {
	case p.dead.Load():
		return peer.Hello{}, errDead
	case members == nil || other.dead.Load():
		return peer.Hello{}, errUnreachable
	}
	w.note("hellos")
	return members.Hello(ctx, hello, netip.Addr{})
}

// withFence lets a plugin have others powered off.
func withFence(c *Config) {
	host, is := c.Host.(*fakeHost)
	if !is {
		panic("the host is not the world's own")
	}
	l := host.life
	self := func(context.Context) (string, error) {
		if l.dead.Load() {
			return "", errDead
		}
		return l.machine.name, nil
	}
	l.members = peer.NewMembers(self, fakePeers{l}, "", c.Log)
	c.Peers, c.Takeover, c.Fencing = l.members, controller.TakeoverFence, controller.Fencing{Witnesses: l.members}
}

func withReboot(c *Config) { c.Fencing.Reboot = true }

// PowerOff implements providers.Fencer. The machine goes on until settlePower.
func (p *fakeProvider) PowerOff(ctx context.Context, node string) error {
	return p.do(ctx, "cloud.PowerOff", func() error {
		w := p.machine.world
		m := w.machines[node]
		if m == nil {
			return providers.ErrNotFound
		}
		w.figures["fences"]++
		w.mayFence(p.machine, m)
		m.off = true
		return nil
	})
}

// PowerOn implements providers.Fencer.
func (p *fakeProvider) PowerOn(ctx context.Context, node string) error {
	return p.do(ctx, "cloud.PowerOn", func() error {
		m := p.machine.world.machines[node]
		if m == nil {
			return providers.ErrNotFound
		}
		for _, d := range p.machine.world.disks {
			if d.HeldBy(node) && time.Since(m.changed) < time.Minute {
				p.machine.world.violate("%s starts %s again, which still holds %s", p.machine.name, node, d.Name)
			}
		}
		m.starts = true
		p.machine.world.figures["restarts after a fence"]++
		return nil
	})
}

// ExamineFence implements providers.Fencer.
func (p *fakeProvider) ExamineFence(context.Context) providers.Finding {
	return providers.Passed("fence", "it may be done")
}

// mayFence notes it as a violation if a machine has another one powered off without need, or one that is about to do the same to it.
// The caller holds mu.
func (w *world) mayFence(by, of *machine) {
	if by.off {
		w.violate("%s has %s powered off, and is being powered off itself", by.name, of.name)
	}
	if of.answering == nil || of.answering.dead.Load() || of.life != providers.Running {
		return
	}
	w.figures["fences of nodes that are alive"]++
	heard := func(a, b *machine) bool {
		return !w.parted(a.name, b.name) && time.Since(w.partsEnded(a.name, b.name)) > 30*time.Second
	}
	for _, m := range w.machines {
		alive := m.answering != nil && !m.answering.dead.Load() && m.life == providers.Running && time.Since(m.begun) > 30*time.Second
		if time.Since(of.begun) > 30*time.Second && (m == by || alive && heard(by, m)) && m != of && heard(m, of) {
			w.violate("%s has %s powered off, which %s hears", by.name, of.name, m.name)
		}
	}
}

// partsEnded is when the last partition between two machines ended. The caller holds mu.
func (w *world) partsEnded(a, b string) time.Time {
	ab, ba := w.parts[[2]string{a, b}], w.parts[[2]string{b, a}]
	if ab.After(ba) {
		return ab
	}
	return ba
}

// settlePower carries out what the cloud was asked for, and returns which machines went off.
func (w *world) settlePower(boot func(*machine)) (off []*machine) {
	var on []*machine
	w.set(func() {
		for _, m := range w.machines {
			switch {
			case m.off:
				off = append(off, m)
			case m.starts && m.life != providers.Running:
				on = append(on, m)
			}
			m.off, m.starts = false, false
		}
	})
	for _, m := range off {
		m.powerOff()
	}
	for _, m := range on {
		m.powerOn()
		boot(m)
	}
	return off
}

// isolate keeps the machine from hearing any other, and any other from hearing it.
func (w *world) isolate(m *machine, until time.Time) {
	for name := range w.machines {
		if name != m.name {
			w.part(m.name, name, until)
		}
	}
}

// cluster is a scene of three machines that know each other, whose plugins may have others powered off. The first has the volume.
func cluster(t *testing.T, story func(t *testing.T, w *world, a, b, c *machine), change ...func(*Config)) {
	t.Helper()
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		c := w.machine("c")
		change = append([]func(*Config){withFence}, change...)
		mounted(t, a.start(t, change...), "data", "1")
		b.start(t, change...)
		c.start(t, change...)
		time.Sleep(2 * time.Minute) // they have met
		require.Equal(t, []string{"a", "c"}, b.current.members.Known())
		story(t, w, a, b, c)
	})
}

// wanting has a container of the machine want the volume until it has it or the time is over, as Swarm has; the result says which.
func wanting(t *testing.T, m *machine, name string, limit time.Duration) <-chan error {
	t.Helper()
	l, result := m.current, make(chan error, 1)
	go func() {
		var err error
		for begun := time.Now(); time.Since(begun) < limit && !l.dead.Load(); time.Sleep(5 * time.Second) {
			ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
			_, err = l.Mount(ctx, name, "of "+m.name)
			cancel()
			if err == nil {
				break
			}
		}
		result <- err
	}()
	return result
}

// powered waits until the cloud is asked to power off the machine, and returns how long that took; it powers it off.
func powered(t *testing.T, w *world, m *machine, limit time.Duration) time.Duration {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < limit; time.Sleep(100 * time.Millisecond) {
		asked := false
		w.set(func() { asked = m.off })
		if asked {
			took := time.Since(begun)
			w.settlePower(nil)
			return took
		}
	}
	t.Fatalf("%s is not powered off", m.name)
	return 0
}

func TestANodeThatAnswersNobodyIsPoweredOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		a.current.dead.Store(true) // its kernel hangs, and has the file system mounted
		result := wanting(t, b, "data", time.Minute)
		took := powered(t, w, a, time.Minute)
		assert.GreaterOrEqual(t, took, 20*time.Second)
		assert.Less(t, took, 21*time.Second)
		require.NoError(t, <-result)
		assert.Equal(t, "b", w.holder("data"))
		assert.Equal(t, 1, w.figures["fences"])
		time.Sleep(time.Second)
		info, err := b.current.Get(within(t), "data")
		require.NoError(t, err)
		assert.Regexp(t, "^node a, by node b at ", info.Status["fenced"])
	})
}
