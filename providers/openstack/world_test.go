package openstack

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	front "github.com/blockvol/blockvol/test/cloud/openstack"
)

// world is a simulated OpenStack without sockets, for a bubble of synctest.
type world struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *front.Front
}

// inWorld runs a test in a bubble of its own, where time costs nothing.
func inWorld(t *testing.T, cfg cloud.Config, test func(*testing.T, *world), also ...func(*front.Config)) {
	t.Helper()
	cfg.ID = front.ID
	if cfg.Zones == nil {
		cfg.Zones = []string{"nova"}
	}
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		of := front.Config{Cloud: c}
		for _, change := range also {
			change(&of)
		}
		test(t, &world{t: t, cloud: c, front: front.New(of)})
	})
}

// slow is what a cloud and its answers take.
var slow = cloud.Times{Create: 4 * time.Second, Delete: 4 * time.Second, Attach: 3 * time.Second, Detach: 3 * time.Second, Modify: 10 * time.Second, Snapshot: 10 * time.Second}

// node adds a server and returns its id.
func (w *world) node() string { return w.cloud.AddInstance(cloud.Instance{}).ID }

// on starts a process on a server: one that knows nothing yet.
func (w *world) on(server string) *Provider {
	w.t.Helper()
	return w.onBy(server, w.front.Transport(server))
}

// onBy is on, with a way to the cloud of its own.
func (w *world) onBy(server string, way http.RoundTripper) *Provider {
	w.t.Helper()
	id, secret := w.front.Credentials(server)
	p, err := New(Config{
		Cluster: "main", Auth: gophercloud.AuthOptions{IdentityEndpoint: "http://keystone.test/identity/v3", ApplicationCredentialID: id},
		Secret: cloudtest.Token("SECRET", secret), Transport: way, Neighbour: &http.Client{Transport: way},
	})
	require.NoError(w.t, err)
	return p
}

// idsOf returns the ids of the volumes that truly have a state of a name, whatever reads show.
func (w *world) idsOf(name, state string) (ids []string) {
	for _, v := range w.cloud.Volumes() {
		if decode(v.Tags[keyName]) == name && v.Tags[keyState] == state && v.State != cloud.Deleting && v.State != cloud.Deleted {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// volumes counts the disks that are not being deleted.
func (w *world) volumes() (n int) {
	for _, v := range w.cloud.Volumes() {
		if v.State != cloud.Deleting && v.State != cloud.Deleted {
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

// attach attaches a volume, and waits until the cloud has it so.
func (w *world) attach(p *Provider, v *providers.Volume) {
	w.t.Helper()
	require.NoError(w.t, providertest.Attach(w.t.Context(), p, v.ID))
	cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Attached)
}

// sentence is what every error for the operator must be, without secrets.
func sentence(t *testing.T, err error, words ...string) {
	t.Helper()
	providertest.Sentence(t, err, words...)
	assert.NotContains(t, err.Error(), "secret-")
	assert.NotContains(t, err.Error(), "gAAAAAB")
}

// way is a way to the cloud that can be told to do something before a request goes on, or instead.
type way struct {
	http.RoundTripper

	mu     sync.Mutex
	before func(r *http.Request, body string) (*http.Response, error) // nil, nil: it goes on
	asked  []string                                                   // method and path of all requests to the cloud
}

func (w *way) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	w.mu.Lock()
	if r.URL.Hostname() != httpsim.MetadataHost {
		w.asked = append(w.asked, r.Method+" "+r.URL.Path)
	}
	before := w.before
	w.mu.Unlock()
	if before != nil {
		if answer, err := before(r, string(body)); answer != nil || err != nil {
			return answer, err
		}
	}
	return w.RoundTripper.RoundTrip(r)
}

// do is told of every request from now on.
func (w *way) do(before func(r *http.Request, body string) (*http.Response, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = before
}

// calls returns what was asked since it was called last.
func (w *way) calls() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	w.asked = nil
	return asked
}
