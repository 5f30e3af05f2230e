package aws

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

func TestEveryRequestIsObservedOnce(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, func(t *testing.T, w *world) {
		var seen []providers.Request
		cut, link := false, w.front.Transport(w.node("a"))
		p, err := New(Config{
			Cluster: "main", Observe: func(r providers.Request) {
				if r.Path == "DescribeVolumes" {
					seen = append(seen, r)
				}
			},
			HTTPClient: &http.Client{Transport: httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				if cut {
					return nil, errors.New("connection reset")
				}
				return link.RoundTrip(r)
			})},
		})
		require.NoError(t, err)
		last := func() providers.Request {
			require.Len(t, seen, 1)
			r := seen[0]
			assert.GreaterOrEqual(t, r.Took, 100*time.Millisecond*time.Duration(r.Retries+1)*time.Duration(min(1, r.Status)))
			seen, r.Took = nil, 0
			return r
		}
		want := providers.Request{Cloud: "EC2", Method: http.MethodPost, Path: "DescribeVolumes", Status: http.StatusOK}
		_, err = p.List(t.Context())
		require.NoError(t, err)
		assert.Equal(t, want, last())

		w.cloud.Inject(cloud.Rule{Action: "DescribeVolumes", Times: 2, Fault: cloud.Throttle})
		_, err = p.List(t.Context())
		require.NoError(t, err)
		want.Retries, want.Throttled = 2, 2
		assert.Equal(t, want, last())

		cut = true
		_, err = p.List(t.Context())
		require.Error(t, err)
		r := last()
		assert.Zero(t, r.Status)
		assert.Contains(t, r.Problem, "cloud cannot be reached")
	})
}
