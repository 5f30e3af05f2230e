package aws

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

// world is a simulated EC2 without sockets, for synctest.
type world struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *ec2.Front
}

// inWorld runs a test in its own synctest bubble.
func inWorld(t *testing.T, cfg cloud.Config, test func(*testing.T, *world), also ...func(*ec2.Config)) {
	t.Helper()
	if cfg.Zones == nil {
		cfg.Zones = []string{region + "a", region + "b"}
	}
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		front := ec2.Config{Cloud: c, Region: region}
		for _, change := range also {
			change(&front)
		}
		test(t, &world{t: t, cloud: c, front: ec2.New(front)})
	})
}

// node adds an instance and returns its ID.
func (w *world) node(zone string) string {
	return w.nodeOf(cloud.Instance{Type: "m5.large", Zone: region + zone})
}

func (w *world) nodeOf(i cloud.Instance) string {
	if i.RootDevice == "" {
		i.RootDevice = "/dev/xvda"
	}
	return w.cloud.AddInstance(i).ID
}

// on starts a process on an instance.
func (w *world) on(instance string) *Provider {
	w.t.Helper()
	return w.onWith(w.front.Transport(instance))
}

func (w *world) onWith(link http.RoundTripper) *Provider {
	w.t.Helper()
	p, err := New(Config{Cluster: "main", HTTPClient: &http.Client{Transport: link}})
	require.NoError(w.t, err)
	return p
}

// named returns the IDs of the volumes with a name, independent of what reads show.
func (w *world) named(name string) (ids []string) {
	for _, v := range w.cloud.Volumes() {
		if v.Tags[tagName] == name && v.State != cloud.Deleting && v.State != cloud.Deleted && v.State != cloud.Broken {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// volumes counts the disks without root disks.
func (w *world) volumes() (n int) {
	for _, v := range w.cloud.Volumes() {
		if len(v.Attachments) == 0 || !v.Attachments[0].DeleteOnTermination {
			n++
		}
	}
	return n
}

func (w *world) create(p *Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Create(w.t.Context(), providers.Spec{Name: name, Size: gib})
	require.NoError(w.t, err)
	return v
}

// attach attaches a volume, and waits until it is attached.
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

// device returns the device name of the volume, independent of what reads show.
func (w *world) device(id string) string {
	v, _ := w.cloud.Volume(id)
	if len(v.Attachments) == 0 {
		return ""
	}
	return v.Attachments[0].Device
}

// slow are realistic durations.
var slow = cloud.Times{Create: 2 * time.Second, Delete: 4 * time.Second, Attach: 3 * time.Second, Detach: 3 * time.Second, Modify: 20 * time.Second, Snapshot: 20 * time.Second}
