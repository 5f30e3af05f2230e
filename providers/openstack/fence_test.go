package openstack

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

func TestServersThatCannotBeStoppedAreTold(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		p := w.on(b)
		for _, status := range []string{"PAUSED", "SUSPENDED"} {
			w.front.SetStatus(a, status, "")
			err := p.PowerOff(t.Context(), a)
			providertest.Sentence(t, err, "vm_state", status)
			require.NotErrorIs(t, err, providers.ErrBusy, "it does not end by itself")
		}
		w.front.SetStatus(a, "", "rebooting")
		require.ErrorIs(t, p.PowerOff(t.Context(), a), providers.ErrBusy)
		w.front.SetStatus(a, "", "powering-off")
		require.NoError(t, p.PowerOff(t.Context(), a))
		w.front.SetStatus(a, "", "")
		w.front.Lock(a)
		err := p.PowerOff(t.Context(), a)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "openstack server unlock")
		w.front.Forbid(b, true)
		providertest.Sentence(t, p.PowerOff(t.Context(), a), "role member", "docs/openstack.md")
	})
}

func TestAServerThatIsCalledStoppedWhileItsPowerIsOnIsNoEvidence(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Stop: 5 * time.Second}}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		p := w.on(b)
		life := func() providers.Life {
			state, err := p.NodeState(t.Context(), a)
			require.NoError(t, err)
			return state.Life
		}
		w.front.SetStatus(a, "SHUTOFF", "")
		assert.Equal(t, providers.Stopped, life())
		for _, on := range []int{1, 3} { // running, paused
			w.front.SetPower(a, on)
			assert.Equal(t, providers.Unclear, life())
		}
		w.front.SetPower(a, 0)
		w.front.SetStatus(a, "SHUTOFF", "powering-on")
		assert.Equal(t, providers.Running, life())
		w.front.SetStatus(a, "", "")
		require.NoError(t, p.PowerOff(t.Context(), a))
		assert.Equal(t, providers.Running, life())
		time.Sleep(6 * time.Second)
		assert.Equal(t, providers.Stopped, life())
	})
}
