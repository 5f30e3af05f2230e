package driver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
)

// frozen calls do while the volume is frozen.
func (l *life) frozen(ctx context.Context, do func()) (held bool, err error) {
	for done := false; !done; time.Sleep(time.Millisecond) { // reconciliation may be at it
		l.attempt("data", volume.Reconciling, func(h *handle) {
			held, err = h.Frozen(ctx, mount.MaxFreeze, func(context.Context) error { do(); return nil })
			done = true
		})
	}
	return held, err
}

func (m *machine) isFrozen() (frozen bool) {
	m.world.set(func() {
		for _, s := range m.mounts {
			frozen = frozen || s.frozen
		}
	})
	return frozen
}

func (m *machine) isNotedFrozen() (noted bool) {
	m.world.set(func() { noted = m.journal["data"].Frozen })
	return noted
}

func TestAVolumeHoldsStillWhileItIsCopied(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		held, err := l.frozen(t.Context(), func() {
			assert.True(t, a.isFrozen())
			assert.True(t, a.isNotedFrozen())
			before := w.disk("data").content
			a.container("data", "1")
			assert.Equal(t, before, w.disk("data").content)
		})
		require.NoError(t, err)
		assert.True(t, held)
		assert.False(t, a.isFrozen())
		assert.False(t, a.isNotedFrozen())
		mustUnmount(t, l, "data", "1")
		_, err = b.start(t).frozen(t.Context(), func() { t.Error("it is not here") })
		require.ErrorIs(t, err, node.ErrNotFrozen)
	})
}

func TestAVolumeHoldsStillForSecondsOnly(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		held, err := l.frozen(t.Context(), func() {
			time.Sleep(mount.MaxFreeze - time.Millisecond)
			assert.True(t, a.isFrozen())
			time.Sleep(2 * time.Millisecond)
			assert.False(t, a.isFrozen())
		})
		require.NoError(t, err)
		assert.False(t, held, "the copy is no better than one without a freeze")
		assert.False(t, a.isNotedFrozen())
	})
}

func TestWhatAKilledLifeLeftFrozenTheNextThaws(t *testing.T) {
	for _, call := range []string{"journal.put", "host.Freeze", "host.Freeze thaw"} {
		for name, crash := range map[string]fault{"before": crashBefore, "after": crashAfter} {
			for _, taken := range []bool{false, true} {
				t.Run(call+" "+name, func(t *testing.T) {
					scene(t, func(t *testing.T, w *world, a, _ *machine) {
						l := mounted(t, a.start(t), "data", "1")
						w.setFault(at(call, crash))
						_, _ = l.frozen(t.Context(), func() {})
						l.kill()
						if taken {
							a.engineTakesMounts()
						}
						w.setFault(at("cloud.Find", hang))
						a.start(t)
						assert.False(t, a.isFrozen())
						assert.False(t, a.isNotedFrozen())
					})
				})
			}
		}
	}
}

func TestAThawThatFailsIsTriedAgain(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		for range 2 { // at the end of the freeze, and at the next start
			w.setFault(func(_, call string) fault {
				if call == "host.Freeze thaw" || call == "host.Thaw" {
					return failBefore
				}
				return noFault
			})
			held, err := l.frozen(t.Context(), func() {})
			require.NoError(t, err)
			assert.False(t, held)
			assert.True(t, a.isFrozen())
			l.kill()
			l = a.start(t)
			assert.True(t, a.isFrozen())
			_, err = l.frozen(t.Context(), func() { t.Error("it is frozen already") })
			require.ErrorIs(t, err, mount.ErrBusy)
			assert.True(t, a.isNotedFrozen())
			w.setFault(calm)
			time.Sleep(reconcileEvery)
			assert.False(t, a.isFrozen())
			assert.False(t, a.isNotedFrozen())
		}
	})
}

func TestAVolumeIsNotFrozenIfNobodyWouldKnow(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.setFault(at("journal.put", failBefore))
		_, err := l.frozen(t.Context(), func() { t.Error("it is frozen") })
		require.ErrorIs(t, err, node.ErrNotFrozen)
		require.ErrorIs(t, err, errInjected)
		w.setFault(calm)
		assert.Zero(t, w.calls["host.Freeze"])
	})
}

func TestAFreezeThatTheKernelKeepsIsRemembered(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.setFault(at("host.Freeze", blocked))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := l.frozen(ctx, func() { t.Error("it is frozen") })
		require.ErrorIs(t, err, mount.ErrFreezing)
		assert.True(t, a.isNotedFrozen())
		time.Sleep(5*time.Minute + reconcileEvery)
		assert.False(t, a.isFrozen())
		assert.False(t, a.isNotedFrozen())
	})
}

func TestWhatAnotherProgramHasFrozenStaysFrozen(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		w.set(func() {
			for _, s := range a.mounts {
				s.frozen = true
			}
		})
		_, err := l.frozen(t.Context(), func() { t.Error("it is frozen by another") })
		require.ErrorIs(t, err, mount.ErrBusy)
		l.kill()
		a.start(t)
		synctest.Wait()
		assert.True(t, a.isFrozen())
	})
}
