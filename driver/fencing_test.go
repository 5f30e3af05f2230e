package driver

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"syscall"
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
	if m := w.machines[to]; m != nil && !w.parted(p.machine.name, to) && m.answering != nil && !time.Now().Before(m.frozen) && !time.Now().Before(p.machine.frozen) {
		other, members = m.answering, m.answering.members
	}
	refuses := w.machines[to] != nil && w.machines[to].refuses
	w.mu.Unlock()
	switch {
	case p.dead.Load():
		return peer.Hello{}, errDead
	case refuses:
		return peer.Hello{}, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
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
		switch {
		case m == nil:
			return providers.ErrNotFound
		case time.Now().Before(w.busyPower):
			return providers.ErrBusy
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

// figure is how often that has come to pass.
func (w *world) figure(what string) (n int) {
	w.set(func() { n = w.figures[what] })
	return n
}

// mayFence notes it as a violation if a machine has another one powered off without need, or one that is about to do the same to it.
// The caller holds mu.
func (w *world) mayFence(by, of *machine) {
	if by.off {
		w.violate("%s has %s powered off, and is being powered off itself", by.name, of.name)
	}
	const lately = 30 * time.Second
	runs := func(m *machine) bool {
		return m.answering != nil && !m.answering.dead.Load() && m.life == providers.Running && time.Since(m.begun) > lately && time.Since(m.frozen) > lately
	}
	if !runs(of) {
		return
	}
	w.figures["fences of nodes that are alive"]++
	heard := func(a, b *machine) bool { return time.Since(w.partsEnded(a.name, b.name)) > lately }
	for _, m := range w.machines {
		if m != of && heard(m, of) && (m == by || runs(m) && heard(by, m)) {
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
				m.container(name, "of "+m.name)
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

// takenByFence has a hang, which is powered off for b to take the volume "data" from it.
func takenByFence(t *testing.T, w *world, a, b *machine) {
	t.Helper()
	a.current.dead.Store(true)
	result := wanting(t, b, "data", 2*time.Minute)
	powered(t, w, a, time.Minute)
	require.NoError(t, <-result)
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
		assert.Equal(t, 1, w.figure("fences"))
		comes(t, "^node a, by node b at ", func() string { return fenced(t, b, "data") })
	})
}

// why returns what stands in the way of the volume on the machine.
func why(t *testing.T, m *machine, name string) string {
	t.Helper()
	info, err := m.current.Get(within(t), name)
	require.NoError(t, err)
	message, _ := info.Status["message"].(string)
	return message
}

// comes waits until the text matches.
func comes(t *testing.T, pattern string, text func() string) {
	t.Helper()
	last := ""
	for begun := time.Now(); time.Since(begun) < 30*time.Second; time.Sleep(500 * time.Millisecond) {
		if last = text(); regexp.MustCompile(pattern).MatchString(last) {
			return
		}
	}
	t.Errorf("%q never comes; last: %q", pattern, last)
}

// fenced is what an operator is told of the volume's last power-off.
func fenced(t *testing.T, m *machine, name string) string {
	t.Helper()
	info, err := m.current.Get(within(t), name)
	require.NoError(t, err)
	words, _ := info.Status["fenced"].(string)
	return words
}

// refuses lets a wait for the volume last for that long, and requires that nobody is powered off. It returns why.
func refuses(t *testing.T, w *world, m *machine, name string, limit time.Duration) string {
	t.Helper()
	result := wanting(t, m, name, limit)
	time.Sleep(limit - 7*time.Second)
	message := why(t, m, name)
	require.Error(t, <-result)
	w.set(func() { require.Zero(t, w.figures["fences"]) })
	return message
}

func TestANodeThatSomebodyHearsIsNotPoweredOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		w.set(func() { w.part("a", "b", time.Now().Add(time.Hour)) })
		assert.Regexp(t, "^still attached to node a, which does not answer and is not powered off: node c heard of it [0-9]+s ago", refuses(t, w, b, "data", 3*time.Minute))
		assert.Empty(t, w.disk("data").Record["fence"], "a claim is left")
	})
}

func TestANodeThatWasNeverHeardOfIsNotPoweredOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.set(func() { w.part("a", "b", time.Now().Add(time.Hour)) })
		mounted(t, a.start(t, withFence), "data", "1")
		b.start(t, withFence)
		time.Sleep(2 * time.Minute)
		assert.Contains(t, refuses(t, w, b, "data", 3*time.Minute), "is not powered off: no node has heard of it before, so that its port may be closed")
	})
}

func TestANodeThatIsCutOffItselfPowersOffNobody(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, _, b, _ *machine) {
		w.set(func() { w.isolate(b, time.Now().Add(time.Hour)) })
		assert.Contains(t, refuses(t, w, b, "data", 3*time.Minute), "is not powered off: 0 of the 2 other nodes answer this one, which may itself be the one that is cut off")
		w.set(func() { clear(w.parts) })
	})
}

// A node that the cloud calls off, or does not know any more, is no node that this one may be cut off from.
func TestNodesThatAreOffDoNotCount(t *testing.T) {
	for name, end := range map[string]func(w *world, c *machine){
		"off":  func(_ *world, c *machine) { c.powerOff() },
		"gone": func(w *world, c *machine) { c.powerOff(); w.set(func() { delete(w.machines, c.name) }) },
	} {
		t.Run(name, func(t *testing.T) {
			cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
				end(w, c)
				time.Sleep(time.Minute)
				a.current.dead.Store(true)
				result := wanting(t, b, "data", 2*time.Minute)
				powered(t, w, a, 2*time.Minute)
				require.NoError(t, <-result)
			})
		})
	}
}

func TestANodeThatIsCutOffFromAllIsPoweredOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		w.set(func() { w.isolate(a, time.Now().Add(time.Hour)) })
		time.Sleep(30 * time.Second) // Swarm's detection
		result := wanting(t, b, "data", time.Minute)
		powered(t, w, a, time.Minute)
		require.NoError(t, <-result)
	})
}

// Each has what the other wants, and neither hears the other. Both reach the cloud, whose answers are old.
func TestTwoNodesDoNotHaveEachOtherPoweredOff(t *testing.T) {
	for lead := -12 * time.Second; lead <= 12*time.Second; lead += time.Second {
		t.Run(lead.String(), func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				w.setLag(5 * time.Second)
				mounted(t, a.start(t, withFence), "data", "1")
				mounted(t, b.start(t, withFence), "other", "2")
				time.Sleep(2 * time.Minute)
				w.set(func() { w.part("a", "b", time.Now().Add(10*time.Minute)) })
				time.Sleep(max(0, -lead))
				first := wanting(t, b, "data", 8*time.Minute)
				time.Sleep(max(0, lead))
				second := wanting(t, a, "other", 8*time.Minute)
				var off []*machine
				for begun := time.Now(); time.Since(begun) < 7*time.Minute; time.Sleep(20 * time.Second) {
					off = append(off, w.settlePower(nil)...)
				}
				require.Len(t, off, 1, "violations: %s", w.violations)
				_, _ = <-first, <-second
				other := map[string]string{"a": "b", "b": "a"}[off[0].name]
				assert.Equal(t, other, w.holder("data"))
				assert.Equal(t, other, w.holder("other"))
			})
		})
	}
}

func TestAPowerOffThatIsRefusedIsTold(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		a.current.dead.Store(true)
		w.setFault(at("cloud.PowerOff", failBefore))
		w.count()
		result := wanting(t, b, "data", 4*time.Minute)
		time.Sleep(3 * time.Minute)
		assert.Equal(t, "still attached to node a, which does not answer and is not powered off: injected failure", why(t, b, "data"))
		require.Error(t, <-result)
		assert.Equal(t, "a", w.holder("data"))
		calls := w.count()
		assert.LessOrEqual(t, calls["PowerOff"], 4)
		assert.Positive(t, calls["PowerOff"])
		time.Sleep(time.Minute)
		assert.Empty(t, w.disk("data").Record["fence"], "a claim is left")
	})
}

// The final state alone counts, however long it takes to come.
func TestAVolumeIsNotTakenWhileItsNodeIsGoingOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		a.current.dead.Store(true)
		result := wanting(t, b, "data", 10*time.Minute)
		time.Sleep(5 * time.Minute)
		assert.Equal(t, "a", w.holder("data"))
		assert.Equal(t, "node a, which answered nobody, is being powered off", why(t, b, "data"))
		w.settlePower(nil)
		require.NoError(t, <-result)
	})
}

func TestANodeThatStopsOnPurposeIsGivenTime(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		a.current.members.Leave(within(t))
		a.current.kill()
		result := wanting(t, b, "data", 5*time.Minute)
		time.Sleep(time.Minute)
		comes(t, "is not powered off: it stopped or was started on purpose 1m[0-9]+s ago$", func() string { return why(t, b, "data") })
		begun := time.Now()
		powered(t, w, a, 3*time.Minute)
		took := time.Minute + time.Since(begun)
		assert.GreaterOrEqual(t, took, 2*time.Minute)
		assert.LessOrEqual(t, took, 2*time.Minute+15*time.Second)
		require.NoError(t, <-result)
	})
}

func TestANodeThatAnswersAgainIsNotPoweredOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		w.set(func() { w.isolate(a, time.Now().Add(13*time.Second)) })
		result := wanting(t, b, "data", 2*time.Minute)
		time.Sleep(12 * time.Second)
		require.NotEmpty(t, w.disk("data").Record["fence"], "it is claimed")
		time.Sleep(7 * time.Second)
		require.Empty(t, w.disk("data").Record["fence"], "the claim is withdrawn as soon as the node answers")
		time.Sleep(time.Minute)
		assert.Contains(t, why(t, b, "data"), "in use on node a by container of-1")
		assert.Empty(t, w.disk("data").Record["fence"], "the claim is withdrawn")
		require.Error(t, <-result)
		assert.Zero(t, w.figure("fences"))
	})
}

// Whoever is at it may die at any moment, and another goes on.
func TestAnotherNodeGoesOnWhenTheOneAtItDies(t *testing.T) {
	for _, call := range []string{"cloud.Mark", "cloud.PowerOff", "cloud.Detach"} {
		for _, f := range []fault{crashBefore, crashAfter} {
			t.Run(call, func(t *testing.T) {
				cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
					a.current.dead.Store(true)
					w.setFault(func(node, is string) fault {
						if node == "b" && is == call {
							return f
						}
						return noFault
					})
					result := wanting(t, b, "data", 2*time.Minute)
					for !b.current.dead.Load() {
						time.Sleep(time.Second)
						w.settlePower(nil)
					}
					require.Error(t, <-result)
					w.setFault(calm)
					b.current.kill()
					b.start(t, withFence)
					result = wanting(t, c, "data", 5*time.Minute)
					for begun := time.Now(); w.holder("data") != "c" && time.Since(begun) < 4*time.Minute; time.Sleep(time.Second) {
						w.settlePower(nil)
					}
					require.NoError(t, <-result)
				})
			})
		}
	}
}

func TestAnAbandonedWaitLeavesNoClaim(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		a.current.dead.Store(true)
		_, err := b.current.Mount(limited(t, 15*time.Second), "data", "2")
		require.Error(t, err)
		require.NotEmpty(t, w.disk("data").Record["fence"])
		time.Sleep(5 * time.Minute)
		assert.Empty(t, w.disk("data").Record["fence"])
		assert.Zero(t, w.figure("fences"))
	})
}

func TestANodeIsStartedAgainWhenItsDisksAreGone(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		mounted(t, a.current, "other", "3")
		a.current.dead.Store(true)
		first, second := wanting(t, b, "data", 2*time.Minute), wanting(t, c, "other", 2*time.Minute)
		powered(t, w, a, time.Minute)
		require.NoError(t, <-first)
		require.NoError(t, <-second)
		time.Sleep(time.Minute)
		require.Equal(t, providers.Stopped, a.life)
		w.settlePower(func(m *machine) { m.start(t, withFence, withReboot) })
		require.Equal(t, providers.Running, a.life)
		assert.Positive(t, w.figure("restarts after a fence"))
		comes(t, "^node a, by node b at .*, and started again$", func() string { return fenced(t, b, "data") })
		time.Sleep(time.Minute)
		assert.Contains(t, b.current.members.Known(), "a")
	}, withReboot)
}

func TestANodeIsNotStartedAgainWhileItHoldsDisksThatOthersMayWant(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		mounted(t, a.current, "other", "3")
		takenByFence(t, w, a, b)
		time.Sleep(30 * time.Second)
		require.Zero(t, w.figure("restarts after a fence"))
		require.NoError(t, <-wanting(t, c, "other", 2*time.Minute))
		time.Sleep(20 * time.Second) // less than the minute after which nobody is waited for
		assert.Equal(t, 1, w.figure("restarts after a fence"))
	}, withReboot)
}

func TestANodeIsStartedAgainByTheNextLifeOfThePlugin(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		takenByFence(t, w, a, b)
		b.current.kill()
		b.start(t, withFence, withReboot)
		time.Sleep(2 * time.Minute)
		w.settlePower(func(m *machine) { m.start(t, withFence, withReboot) })
		assert.Equal(t, 1, w.figure("restarts after a fence"))
		b.current.kill()
		a.powerOff() // by an operator, who does not want it started
		b.start(t, withFence, withReboot)
		time.Sleep(5 * time.Minute)
		assert.Equal(t, 1, w.figure("restarts after a fence"))
	}, withReboot)
}

func TestOneOfSeveralThatWantAVolumeHasItsHolderPoweredOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		a.current.dead.Store(true)
		first, second := wanting(t, b, "data", 2*time.Minute), wanting(t, c, "data", 2*time.Minute)
		powered(t, w, a, time.Minute)
		time.Sleep(2 * time.Minute)
		one, other := <-first, <-second
		assert.NotEqual(t, one == nil, other == nil, "%v, %v", one, other)
		assert.Equal(t, 1, w.figure("fences"))
	})
}

// What spoke against it may end at any time; older claims must be shown then, too.
func TestAClaimThatCameLateIsWaitedFor(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, c *machine) {
		a.current.dead.Store(true)
		c.current.dead.Store(true)
		result := wanting(t, b, "data", 5*time.Minute)
		time.Sleep(time.Minute)
		comes(t, "is not powered off: 0 of the 2 other nodes answer", func() string { return why(t, b, "data") })
		require.Empty(t, w.disk("data").Record["fence"])
		c.powerOff()
		for w.disk("data").Record["fence"] == "" {
			time.Sleep(100 * time.Millisecond)
		}
		assert.GreaterOrEqual(t, powered(t, w, a, time.Minute), 9900*time.Millisecond)
		require.NoError(t, <-result)
	})
}

// A cloud that is busy with something else of the node is asked again soon.
func TestAPowerOffForWhichTheCloudIsBusyIsAskedForAgainSoon(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		a.current.dead.Store(true)
		w.set(func() { w.busyPower = time.Now().Add(40 * time.Second) })
		result := wanting(t, b, "data", 2*time.Minute)
		assert.Less(t, powered(t, w, a, time.Minute), 46*time.Second)
		require.NoError(t, <-result)
	})
}

// An engine that starts again takes the plugin away without a word, and for longer than a node's silence may last.
func TestANodeWhosePluginIsBeingStartedAgainIsNotPoweredOff(t *testing.T) {
	cluster(t, func(t *testing.T, w *world, a, b, _ *machine) {
		a.current.dead.Store(true)
		w.set(func() { a.refuses = true })
		result := wanting(t, b, "data", 4*time.Minute)
		comes(t, "is not powered off: its machine answers but its plugin does not, and is given 2m0s to start$", func() string { return why(t, b, "data") })
		took := powered(t, w, a, 3*time.Minute)
		assert.Greater(t, took, 85*time.Second)
		require.NoError(t, <-result)
	})
}
