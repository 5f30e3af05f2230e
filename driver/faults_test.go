package driver

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// askedWho is the world's cloud, of which the question who this node is can fail like any other.
type askedWho struct{ *fakeProvider }

func (p askedWho) Node(ctx context.Context) (providers.Node, error) {
	if err := p.do(ctx, "cloud.Node", func() error { return nil }); err != nil {
		return providers.Node{}, err
	}
	return p.fakeProvider.Node(ctx)
}

func (m *machine) startAsked(t *testing.T) *life {
	return m.start(t, func(c *Config) { c.Provider = askedWho{c.Provider.(*fakeProvider)} })
}

// An errand is a call of the plugin, and what must be true if it is answered without an error.
type errand struct {
	before func(t *testing.T, l *life, b *machine)
	call   func(ctx context.Context, l *life) error
	done   func(w *world, a *machine) bool
	strict bool // whatever fails in it is answered as the cause
}

func mountOf(id string) func(ctx context.Context, l *life) error {
	return func(ctx context.Context, l *life) error {
		_, err := l.Mount(ctx, "data", id)
		return err
	}
}

func isMounted(id string) func(w *world, a *machine) bool {
	return func(w *world, a *machine) bool {
		e := a.journal["data"]
		return e != nil && e.Has(used(id)) && w.disk("data").Record[volume.KeyFormatted] == "ext4" && a.container("data", id)
	}
}

func isReleased(w *world, a *machine) bool {
	return w.holder("data") == "" && len(a.mounts) == 0 && a.journal["data"] == nil
}

func isRemoved(w *world, a *machine) bool { return w.disk("data") == nil && isReleased(w, a) }

var errands = map[string]errand{
	"create": {
		before: func(*testing.T, *life, *machine) {},
		call:   func(ctx context.Context, l *life) error { return l.Create(ctx, "data", nil) },
		done:   func(w *world, _ *machine) bool { return w.disk("data") != nil },
		strict: true,
	},
	"first mount": {
		before: func(t *testing.T, l *life, _ *machine) { made(t, l, "data") },
		call:   mountOf("1"), done: isMounted("1"), strict: true,
	},
	"mount": {
		before: func(t *testing.T, l *life, _ *machine) {
			formatted(t, l, "data")
			time.Sleep(time.Minute)
		},
		call: mountOf("1"), done: isMounted("1"), strict: true,
	},
	"mount of what a stopped node holds": {
		before: func(t *testing.T, _ *life, b *machine) {
			mounted(t, b.start(t), "data", "0")
			b.powerOff()
		},
		call: mountOf("1"), done: isMounted("1"),
	},
	"second mount": {
		before: func(t *testing.T, l *life, _ *machine) { mounted(t, l, "data", "0") },
		call:   mountOf("1"), done: isMounted("1"),
	},
	"unmount": {
		before: func(t *testing.T, l *life, _ *machine) {
			mounted(t, l, "data", "0")
			l.machine.containerEnds("0")
		},
		call: func(ctx context.Context, l *life) error { return l.Unmount(ctx, "data", "0") }, done: isReleased,
	},
	"unmount of an ID that the journal lost": {
		before: func(t *testing.T, l *life, _ *machine) {
			mounted(t, l, "data", "0")
			l.machine.containerEnds("0")
			l.kill()
			synctest.Wait()
			l.machine.journal["data"].Uses = nil
			l.machine.startAsked(t)
		},
		call: func(ctx context.Context, l *life) error { return l.Unmount(ctx, "data", "0") }, done: isReleased,
	},
	"unmount of a disk that was pulled": {
		before: func(t *testing.T, l *life, _ *machine) {
			mounted(t, l, "data", "0")
			l.machine.containerEnds("0")
			l.machine.world.alter(func(d *disk) { d.present = time.Now().Add(time.Hour) })
		},
		call: func(ctx context.Context, l *life) error { return l.Unmount(ctx, "data", "0") }, done: isReleased,
	},
	"remove": {
		before: func(t *testing.T, l *life, _ *machine) { formatted(t, l, "data") },
		call:   func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") }, done: isRemoved,
	},
	"remove of what a dead container used": {
		before: func(t *testing.T, l *life, _ *machine) {
			mounted(t, l, "data", "0")
			l.machine.containerEnds("0")
		},
		call: func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") }, done: isRemoved,
	},
	"remove by a snapshot": {
		before: func(t *testing.T, l *life, _ *machine) {
			require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "snapshot"}))
		},
		call: func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") },
		done: func(w *world, a *machine) bool { return isRemoved(w, a) && len(w.snapshots) > 0 },
	},
	"remove of a disk to be kept": {
		before: func(t *testing.T, l *life, _ *machine) {
			require.NoError(t, l.Create(within(t), "data", map[string]string{"reclaim": "retain"}))
		},
		call: func(ctx context.Context, l *life) error { return l.Remove(ctx, "data") },
		done: func(w *world, a *machine) bool { return isRemoved(w, a) && len(w.disks) == 1 },
	},
}

// Each call that the plugin makes to the cloud, to the kernel and to its journal fails once, without effect or after it, or is
// the last one of the process. What is answered without an error is true, an error names the volume, and afterwards the volume
// can be used, and is let go.
func TestWhicheverCallFailsTheAnswerIsTrueAndARetryWorks(t *testing.T) {
	for name, e := range errands {
		t.Run(name, func(t *testing.T) {
			for f, what := range map[fault]string{failBefore: "fails", failAfter: "has no answer", crashBefore: "is not made", crashAfter: "is the last"} {
				failed := ""
				for n := 1; n == 1 || failed != ""; n++ {
					scene(t, func(t *testing.T, w *world, a, b *machine) { failed = e.play(t, w, a, b, n, f, what) })
					if t.Failed() {
						return
					}
				}
			}
		})
	}
}

// play lets the nth call of an errand go wrong, and returns which that was, or "" if there were fewer.
func (e errand) play(t *testing.T, w *world, a, b *machine, n int, f fault, what string) (failed string) {
	l := a.startAsked(t)
	e.before(t, l, b)
	l = a.current
	synctest.Wait()
	calls := 0
	w.setFault(func(node, call string) fault {
		if node != a.name || call == "host.Space" { // which is measured beside the call, and which no answer waits for
			return noFault
		}
		if calls++; calls == n {
			failed = fmt.Sprintf("call %d, %s, %s", n, call, what)
			return f
		}
		return noFault
	})
	err := e.call(within(t), l)
	w.setFault(calm)
	synctest.Wait()
	dead := l.dead.Load()
	switch {
	case dead:
		require.Error(t, err, failed)
		l.kill()
		l = a.startAsked(t)
	case err == nil:
		require.True(t, e.done(w, a), "it was answered without an error though it was not done: %s", failed)
	default:
		require.ErrorContains(t, err, `"data"`, failed)
	}
	if e.strict && f == failBefore && failed != "" && !dead {
		require.ErrorIs(t, err, errInjected, failed)
	}
	if err != nil {
		synctest.Wait()
		require.NoError(t, e.call(within(t), l), "again, after %s", failed)
		synctest.Wait()
		require.True(t, e.done(w, a), "again, after %s", failed)
	}
	for _, id := range []string{"0", "1"} {
		a.containerEnds(id)
		require.NoError(t, l.Unmount(within(t), "data", id), failed)
	}
	time.Sleep(2 * idleTTL)
	synctest.Wait()
	assert.True(t, isReleased(w, a), "it is not let go, after %s", failed)
	return failed
}
