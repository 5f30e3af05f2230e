package digitalocean

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
)

// DigitalOcean shows a droplet as active until it is off, and refuses all actions until then.
func TestAPowerOffUnderWayIsNotAskedForAgain(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Attach: 5 * time.Second, Stop: 5 * time.Second}}, front.Config{}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		pa, pb := w.on(a), w.on(b)
		v := w.create(pa, "db")
		require.NoError(t, pa.Attach(t.Context(), v.ID, a))
		require.ErrorIs(t, pb.PowerOff(t.Context(), a), providers.ErrBusy, "a volume is being attached")
		time.Sleep(6 * time.Second)
		for _, p := range []*Provider{pb, pb, w.on(b)} {
			require.NoError(t, p.PowerOff(t.Context(), a))
			require.ErrorIs(t, p.PowerOn(t.Context(), a), providers.ErrBusy)
		}
		w.cloud.Inject(cloud.Rule{Action: "GET /v2/droplets/{id}/actions", Fault: cloud.Fail, Code: "403"})
		require.ErrorIs(t, pb.PowerOff(t.Context(), a), providers.ErrBusy, "the actions cannot be seen")
		time.Sleep(6 * time.Second)
		require.NoError(t, pb.PowerOff(t.Context(), a))
	})
}

func TestFenceNeedsItsScope(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		w.front.Restrict(w.front.Token(b), "droplet:read")
		providertest.Sentence(t, w.on(b).PowerOff(t.Context(), a), "the scope droplet:update", "docs/digitalocean.md")
	})
}
