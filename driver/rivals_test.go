package driver

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
)

func always(c *Config) { c.Takeover = controller.TakeoverAlways }

// A plugin that is upgraded, or a connection that is lost, says nothing of the container that writes.
func TestAHolderWhosePluginRestartsIsNotTakenFrom(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := mounted(t, a.start(t, withPeers), "data", "1"), b.start(t, always, withPeers)
		result := make(chan error, 1)
		go func() {
			_, err := lb.Mount(limited(t, 2*time.Minute), "data", "2")
			result <- err
		}()
		time.Sleep(40 * time.Second)
		la.kill()
		time.Sleep(8 * time.Second)
		a.start(t, withPeers)
		require.ErrorIs(t, <-result, volume.Unfinished)
		assert.Equal(t, "a", w.holder("data"))
	})
}

// The work goes on for a while when its caller has left, and then nobody is asked.
func TestAHolderIsNotTakenFromForACallerWhoHasLeft(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, a.start(t, withPeers), "data", "1")
		lb := b.start(t, always, withPeers)
		for stay := 16 * time.Second; stay < 50*time.Second; stay += 500 * time.Millisecond {
			_, err := lb.Mount(limited(t, stay), "data", "2")
			require.ErrorIs(t, err, volume.Unfinished)
			time.Sleep(40 * time.Second)
			require.Equal(t, "a", w.holder("data"), stay)
		}
	})
}

// liar is a peer that answers whatever it likes.
type liar func(want volume.Want) volume.Holding

// Ask implements controller.Peers.
func (l liar) Ask(ctx context.Context, _ []netip.Addr, want volume.Want) (volume.Holding, error) {
	select {
	case <-time.After(time.Millisecond):
		return l(want), nil
	case <-ctx.Done():
		return volume.Holding{}, ctx.Err()
	}
}

func TestANodeThatKeepsChangingItsMindCostsLittle(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, a.start(t), "data", "1")
		var asked atomic.Int64
		log, hook := logtest.NewNullLogger()
		lb := b.start(t, func(c *Config) {
			c.Log = log
			c.Peers = liar(func(volume.Want) volume.Holding {
				return volume.Holding{State: []volume.HoldingState{volume.HoldsInUse, volume.HoldsNothing, volume.HoldsBusy, volume.HoldsLeaving}[asked.Add(1)%4]}
			})
		})
		w.count()
		_, err := lb.Mount(within(t), "data", "2")
		require.ErrorIs(t, err, volume.Unfinished)
		calls := w.count()
		t.Log(asked.Load(), len(hook.AllEntries()), calls)
		assert.LessOrEqual(t, asked.Load(), int64(60))
		assert.LessOrEqual(t, len(hook.AllEntries()), 60)
	})
}
