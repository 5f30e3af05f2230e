package linode

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
)

// Linode has no error codes, and its reference does not tell what it says of a Linode that is so already.
func TestWhatLinodeSaysOfItsPowerDoesNotMatter(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Stop: 5 * time.Second}}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		p := w.on(b)
		for _, words := range []string{"Linode is not running", "This Linode must be running", "Nothing to do"} {
			refuse := func() {
				w.cloud.Inject(cloud.Rule{Action: "POST /v4/linode/instances/{id}/shutdown", Fault: cloud.Fail, Code: words, Times: 1})
			}
			refuse()
			require.ErrorIs(t, p.PowerOff(t.Context(), a), providers.ErrBusy, "it is shown as running")
			require.NoError(t, p.PowerOff(t.Context(), a))
			refuse()
			require.NoError(t, p.PowerOff(t.Context(), a), "it is shutting down")
			time.Sleep(6 * time.Second)
			refuse()
			require.NoError(t, p.PowerOff(t.Context(), a))
			require.NoError(t, p.PowerOn(t.Context(), a))
			require.ErrorIs(t, p.PowerOff(t.Context(), a), providers.ErrBusy, "it is booting")
			time.Sleep(6 * time.Second)
			require.NoError(t, p.PowerOn(t.Context(), a))
		}
		w.cloud.Inject(cloud.Rule{Action: "POST /v4/linode/instances/{id}/shutdown", Fault: cloud.Fail, Code: "Linode busy.", Times: 1})
		require.ErrorIs(t, p.PowerOff(t.Context(), a), providers.ErrBusy)
	})
}
