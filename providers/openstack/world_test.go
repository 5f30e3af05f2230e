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

// world is a simulated OpenStack without sockets, for synctest.
type world struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *front.Front
}

// inWorld runs a test in its own synctest bubble.
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

// slow are realistic durations.
var slow = cloud.Times{Create: 4 * time.Second, Delete: 4 * time.Second, Attach: 3 * time.Second, Detach: 3 * time.Second, Modify: 10 * time.Second, Snapshot: 10 * time.Second}

// node adds a server and returns its ID.
func (w *world) node() string { return w.cloud.AddInstance(cloud.Instance{}).ID }

// on starts a process on a server.
func (w *world) on(server string) *Provider {
	w.t.Helper()
	return w.onBy(server, w.front.Transport(server))
}

// onBy is on with a transport.
func (w *world) onBy(server string, link http.RoundTripper) *Provider {
	w.t.Helper()
	id, secret := w.front.Credentials(server)
	p, err := New(Config{
		Cluster: "main", Auth: gophercloud.AuthOptions{IdentityEndpoint: "http://keystone.test/identity/v3", ApplicationCredentialID: id},
		Secret: cloudtest.Token("SECRET", secret), Transport: link, Neighbour: &http.Client{Transport: link},
	})
	require.NoError(w.t, err)
	return p
}

// idsOf returns the IDs of the volumes with a name and a state, independent of what reads show.
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

// attach attaches a volume, and waits until it is attached.
func (w *world) attach(p *Provider, v *providers.Volume) {
	w.t.Helper()
	require.NoError(w.t, providertest.Attach(w.t.Context(), p, v.ID))
	cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Attached)
}

// sentence is providertest.Sentence, and asserts that the error shows no secret.
func sentence(t *testing.T, err error, words ...string) {
	t.Helper()
	providertest.Sentence(t, err, words...)
	assert.NotContains(t, err.Error(), "secret-")
	assert.NotContains(t, err.Error(), "gAAAAAB")
}

// transport is a transport that calls a function before each request, or instead of it.
type transport struct {
	http.RoundTripper

	mu     sync.Mutex
	before func(r *http.Request, body string) (*http.Response, error) // nil, nil: it goes on
	asked  []string                                                   // method and path of all requests to the cloud
}

func (w *transport) RoundTrip(r *http.Request) (*http.Response, error) {
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

// do sets the function. nil sets none.
func (w *transport) do(before func(r *http.Request, body string) (*http.Response, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = before
}

// calls returns the requests since it was called last.
func (w *transport) calls() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	w.asked = nil
	return asked
}
