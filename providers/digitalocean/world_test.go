package digitalocean

import (
	"net/http"
	"testing"
	"time"

	"github.com/digitalocean/godo"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
)

// world is a simulated DigitalOcean without sockets, for a bubble of synctest.
type world struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *front.Front
	log   logrus.FieldLogger
}

// slow is what DigitalOcean takes for its actions.
var slow = cloud.Times{Attach: 5 * time.Second, Detach: 5 * time.Second, Modify: 20 * time.Second, Snapshot: 4 * time.Second}

// inWorld runs a test in a bubble of its own, where time costs nothing.
func inWorld(t *testing.T, cfg cloud.Config, shown front.Config, test func(*testing.T, *world)) {
	t.Helper()
	cfg.Zones, cfg.ID = []string{region, "ams3"}, front.ID
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		shown.Cloud = c
		test(t, &world{t: t, cloud: c, front: front.New(shown)})
	})
}

// inBoth is inWorld for both ways in which droplet_ids may show what is under way.
func inBoth(t *testing.T, cfg cloud.Config, test func(*testing.T, *world)) {
	t.Helper()
	for name, early := range map[string]bool{"shown late": false, "shown early": true} {
		t.Run(name, func(t *testing.T) { inWorld(t, cfg, front.Config{Early: early}, test) })
	}
}

// node adds a droplet and returns its id.
func (w *world) node() string { return w.cloud.AddInstance(cloud.Instance{}).ID }

// on starts a process on a droplet: one that knows nothing yet.
func (w *world) on(node string) *Provider {
	w.t.Helper()
	return w.of(node, "main", w.front.Transport(node))
}

func (w *world) of(node, cluster string, way http.RoundTripper) *Provider {
	w.t.Helper()
	p, err := New(Config{Cluster: cluster, Token: cloudtest.Token(settingToken, w.front.Token(node)), Transport: way, Log: w.log})
	require.NoError(w.t, err)
	return p
}

func (w *world) create(p *Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Create(w.t.Context(), providers.Spec{Name: name, Size: gib})
	require.NoError(w.t, err)
	return v
}

func (w *world) find(p *Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Find(w.t.Context(), name)
	require.NoError(w.t, err)
	return v
}

// attach attaches a volume, and waits until DigitalOcean is done.
func (w *world) attach(p *Provider, v *providers.Volume) {
	w.t.Helper()
	require.NoError(w.t, providertest.Attach(w.t.Context(), p, v.ID))
	cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Attached)
}

func (w *world) detach(p *Provider, v *providers.Volume, node string) {
	w.t.Helper()
	require.NoError(w.t, p.Detach(w.t.Context(), v.ID, node, false))
	cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Detached)
}

// idsOf returns the ids of the volumes that truly have a name of this cluster.
func (w *world) idsOf(name string) (ids []string) {
	for _, v := range w.cloud.Volumes() {
		if is := identityOf(trueTags(v)); is.cluster == "main" && is.name == name && v.State != cloud.Deleting && v.State != cloud.Deleted {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

func trueTags(v cloud.Volume) (tags []string) {
	for key := range v.Tags {
		if len(key) > 4 && key[:4] == "tag:" {
			tags = append(tags, key[4:])
		}
	}
	return tags
}

// byHand does something that no process of blockvol does.
func (w *world) byHand(do func(*cloud.Request) error) {
	_, err := w.cloud.Do(w.t.Context(), cloud.Call{Action: "by hand", Aside: true}, do)
	assert.NoError(w.t, err)
}

// disk makes a volume as somebody does who does not know blockvol, and returns its id.
func (w *world) disk(name string) (id string) {
	w.byHand(func(r *cloud.Request) error {
		tags := map[string]string{"name": name, "description": "by hand"}
		v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: 2 * gib}, Tags: tags})
		id = v.ID
		return err
	})
	return id
}

// calls returns what the API was asked since the last time, by action.
func (w *world) calls() map[string]int {
	defer w.cloud.ResetCalls()
	return w.cloud.Calls()
}

// The actions, as the simulation counts them.
const (
	listVolumes  = "GET /v2/volumes"
	createVolume = "POST /v2/volumes"
	getTag       = "GET /v2/tags/{tag}"
	getVolume    = "GET /v2/volumes/{id}"
	deleteVolume = "DELETE /v2/volumes/{id}"
	act          = "POST /v2/volumes/{id}/actions"
	getAction    = "GET /v2/volumes/{id}/actions/{action}"
)

func tagRequest(name string) *godo.TagCreateRequest { return &godo.TagCreateRequest{Name: name} }
