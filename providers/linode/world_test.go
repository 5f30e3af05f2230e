package linode

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/linode"
)

// The routes of the API, as faults and counts name them.
const (
	listing   = "GET /v4/volumes"
	creating  = "POST /v4/volumes"
	looking   = "GET /v4/volumes/{id}"
	tagging   = "PUT /v4/volumes/{id}"
	attaching = "POST /v4/volumes/{id}/attach"
	detaching = "POST /v4/volumes/{id}/detach"
	resizing  = "POST /v4/volumes/{id}/resize"
	asking    = "GET /v4/linode/instances/{id}"
)

// world is a simulated Linode without sockets, for a bubble of synctest.
type world struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *linode.Front
}

// inWorld runs a test in a bubble of its own, where time costs nothing.
func inWorld(t *testing.T, cfg cloud.Config, test func(*testing.T, *world)) {
	t.Helper()
	cfg.Zones, cfg.ID = []string{region, "us-test"}, linode.ID
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		test(t, &world{t: t, cloud: c, front: linode.New(linode.Config{Cloud: c, Plain: []string{"us-test"}})})
	})
}

// node adds an instance and returns its id.
func (w *world) node() string { return w.cloud.AddInstance(cloud.Instance{Type: "g6-standard-8"}).ID }

// on starts a process on an instance: one that knows nothing yet.
func (w *world) on(instance string, change ...func(*Config)) *Provider {
	w.t.Helper()
	cfg := Config{Cluster: "main", Token: cloudtest.Token("LINODE_TOKEN", w.front.Token(instance)), Transport: w.front.Transport(instance)}
	for _, c := range change {
		c(&cfg)
	}
	p, err := New(cfg)
	require.NoError(w.t, err)
	return p
}

func (w *world) create(p *Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Create(w.t.Context(), providers.Spec{Name: name, Size: 10 * gib})
	require.NoError(w.t, err)
	return v
}

// attach attaches a volume, and waits until its device is there.
func (w *world) attach(p *Provider, v *providers.Volume) {
	w.t.Helper()
	require.NoError(w.t, providertest.Attach(w.t.Context(), p, v.ID))
	cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Attached)
}

// calls counts the requests to the API since the last time, those of a fresh process's look at itself included.
func (w *world) calls() map[string]int {
	calls := w.cloud.Calls()
	w.cloud.ResetCalls()
	return calls
}

// slow is what Linode takes.
var slow = cloud.Times{Create: 3 * time.Second, Delete: 4 * time.Second, Attach: 6 * time.Second, Detach: 8 * time.Second, Modify: 20 * time.Second}
