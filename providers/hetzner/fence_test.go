package hetzner

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
)

func TestALockedServerIsPoweredOffALittleLater(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		pa, pb := w.on(a), w.on(b)
		v := w.create(pa, "db")
		require.NoError(t, pa.Attach(t.Context(), v.ID, a))
		require.ErrorIs(t, pb.PowerOff(t.Context(), a), providers.ErrBusy, "a volume is being attached")
		require.ErrorIs(t, pb.PowerOn(t.Context(), a), providers.ErrBusy)
		time.Sleep(5 * time.Second)
		w.since()
		require.NoError(t, pb.PowerOff(t.Context(), a))
		assert.Equal(t, []string{"POST /v1/servers/" + a + "/actions/poweroff"}, w.since())
		require.NoError(t, pb.PowerOff(t.Context(), a), "it is stopping")
		require.ErrorIs(t, pb.PowerOn(t.Context(), a), providers.ErrBusy)
		time.Sleep(2 * time.Second)
		require.NoError(t, pb.Detach(t.Context(), v.ID, a, true))
		require.ErrorIs(t, pb.PowerOff(t.Context(), a), providers.ErrBusy, "what locks it may be its start")
	})
}

func TestAServerThatIsOffMayBeRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		p := w.on(b)
		refuse := func() {
			w.cloud.Inject(cloud.Rule{Caller: b, Fault: cloud.Fail, Code: "invalid_input it is so already", Times: 1})
		}
		refuse()
		require.NoError(t, p.PowerOn(t.Context(), a))
		refuse()
		require.ErrorIs(t, p.PowerOff(t.Context(), a), providers.ErrInvalid)
		w.cloud.Stop(a)
		refuse()
		require.NoError(t, p.PowerOff(t.Context(), a))
		refuse()
		require.ErrorIs(t, p.PowerOn(t.Context(), a), providers.ErrInvalid)
	})
}
