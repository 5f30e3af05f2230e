package aws

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

// On the way out, a lagging read still calls a volume attached. That must not pass for the attach that was asked for.
func TestAnAttachThatEC2DidNotTakeIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := cloud.New(cloud.Config{
			Zones: []string{region + "a"}, Latency: 100 * time.Millisecond, Lag: 3 * time.Second, Seed: 1,
			Times: cloud.Times{Attach: 5 * time.Second, Detach: 5 * time.Second},
		})
		t.Cleanup(sim.Close)
		front := ec2.New(ec2.Config{Cloud: sim, Region: region})
		i := sim.AddInstance(cloud.Instance{Type: "m5.large", RootDevice: "/dev/xvda"})
		time.Sleep(time.Minute) // it booted
		p, err := New(Config{Cluster: "test", HTTPClient: &http.Client{Transport: front.Transport(i.ID)}})
		require.NoError(t, err)
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		require.NoError(t, err)
		for range 10 {
			require.NoError(t, p.Attach(t.Context(), v.ID))
			time.Sleep(time.Minute)
			require.NoError(t, p.Detach(t.Context(), v.ID, i.ID, false))
			for {
				err := p.Attach(t.Context(), v.ID)
				if err == nil {
					break
				}
				require.ErrorIs(t, err, providers.ErrBusy)
				time.Sleep(200 * time.Millisecond)
			}
			now, _ := sim.Volume(v.ID)
			if assert.Len(t, now.Attachments, 1) {
				assert.Equal(t, cloud.Attaching, now.Attachments[0].State)
			}
			time.Sleep(time.Minute)
			require.NoError(t, p.Detach(t.Context(), v.ID, i.ID, false))
			time.Sleep(time.Minute)
		}
	})
}
