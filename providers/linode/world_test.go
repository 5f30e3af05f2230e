package linode

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
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
	synctest.Test(t, func(t *testing.T) {
		cfg.Zones, cfg.ID = []string{region, "us-test"}, linode.ID
		w := &world{t: t, cloud: cloud.New(cfg)}
		defer w.cloud.Close()
		w.front = linode.New(linode.Config{Cloud: w.cloud, Plain: []string{"us-test"}})
		test(t, w)
	})
}

// node adds an instance and returns its id.
func (w *world) node() string { return w.cloud.AddInstance(cloud.Instance{Type: "g6-standard-8"}).ID }

// on starts a process on an instance: one that knows nothing yet.
func (w *world) on(instance string, change ...func(*Config)) *Provider {
	w.t.Helper()
	cfg := Config{Cluster: "main", Token: tokenOf(w.t, w.front.Token(instance)), Transport: w.front.Transport(instance)}
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
	require.NoError(w.t, p.Attach(w.t.Context(), v.ID))
	w.until(v.ID, func(v cloud.Volume) bool { return len(v.Attachments) == 1 && v.Attachments[0].State == cloud.Attached })
}

func (w *world) until(id string, is func(cloud.Volume) bool) {
	w.t.Helper()
	for range 1000 {
		if v, _ := w.cloud.Volume(id); is(v) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("volume %s does not come to that", id)
}

// holder is the instance that truly has the volume.
func (w *world) holder(id string) string {
	v, _ := w.cloud.Volume(id)
	if len(v.Attachments) == 0 {
		return ""
	}
	return v.Attachments[0].Instance
}

// calls counts the requests to the API since the last time, those of a fresh process's look at itself included.
func (w *world) calls() map[string]int {
	calls := w.cloud.Calls()
	w.cloud.ResetCalls()
	return calls
}

// before is a way on which something happens before a request goes on.
type before struct {
	http.RoundTripper
	do func(*http.Request)
}

func (b before) RoundTrip(r *http.Request) (*http.Response, error) {
	b.do(r)
	return b.RoundTripper.RoundTrip(r)
}

// instead is a way on which something else than Linode's API answers.
type instead func(*http.Request) (*http.Response, error)

func (i instead) RoundTrip(r *http.Request) (*http.Response, error) { return i(r) }

func said(r *http.Request, status int, kind, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {kind}},
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}

// slow is what Linode takes.
var slow = cloud.Times{Create: 3 * time.Second, Delete: 4 * time.Second, Attach: 6 * time.Second, Detach: 8 * time.Second, Modify: 20 * time.Second}
