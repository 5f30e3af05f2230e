package hetzner

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/wire"
)

// world is a simulated Hetzner Cloud without sockets, for a bubble of synctest.
type world struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *hetzner.Front
	sent  *sent
}

// slow is what actions take.
var slow = cloud.Times{Create: 2 * time.Second, Delete: time.Second, Attach: 4 * time.Second, Detach: 4 * time.Second, Modify: 3 * time.Second, Stop: time.Second, Terminate: time.Second}

// inWorld runs a test in a bubble of its own, where time costs nothing.
func inWorld(t *testing.T, cfg cloud.Config, front hetzner.Config, test func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.Zones, cfg.ID = []string{"fsn1", "nbg1"}, hetzner.ID
		w := &world{t: t, cloud: cloud.New(cfg), sent: &sent{}}
		defer w.cloud.Close()
		front.Cloud = w.cloud
		w.front = hetzner.New(front)
		test(t, w)
	})
}

// node adds a server and returns its id.
func (w *world) node(location string) string {
	return w.cloud.AddInstance(cloud.Instance{Zone: location}).ID
}

// on starts a process on a server: one that knows nothing yet.
func (w *world) on(server string) *Provider {
	w.t.Helper()
	return w.onWith(server, w.front.Transport(server))
}

func (w *world) onWith(server string, way http.RoundTripper) *Provider {
	w.t.Helper()
	w.sent.way = way
	p, err := New(Config{Cluster: "main", Token: token(w.t, w.front.Token(server)), Transport: &sent{way: way, to: w.sent}})
	require.NoError(w.t, err)
	return p
}

// sent keeps what was sent to the API: "POST /v1/volumes {…}".
type sent struct {
	way http.RoundTripper
	to  *sent

	mu  sync.Mutex
	all []string
}

func (s *sent) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(strings.NewReader(body))
	}
	if r.URL.Hostname() != wire.MetadataHost {
		s.to.mu.Lock()
		s.to.all = append(s.to.all, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+body))
		s.to.mu.Unlock()
	}
	return s.way.RoundTrip(r)
}

// since returns what was sent since it was asked last.
func (w *world) since() []string {
	w.sent.mu.Lock()
	defer w.sent.mu.Unlock()
	all := w.sent.all
	w.sent.all = nil
	return all
}

// way is a RoundTripper that is a function.
type way func(*http.Request) (*http.Response, error)

func (w way) RoundTrip(r *http.Request) (*http.Response, error) { return w(r) }

// says answers with that.
func says(r *http.Request, status int, kind, body string) (*http.Response, error) {
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

var errReset = errors.New("connection reset by peer")

func (w *world) create(p *Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Create(w.t.Context(), providers.Spec{Name: name, Size: size})
	require.NoError(w.t, err)
	return v
}

func (w *world) find(p *Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Find(w.t.Context(), name)
	require.NoError(w.t, err)
	return v
}

// attach attaches a volume, and waits until Hetzner has it so.
func (w *world) attach(p *Provider, v *providers.Volume) {
	w.t.Helper()
	require.NoError(w.t, p.Attach(w.t.Context(), v.ID))
	w.settle()
}

func (w *world) detach(p *Provider, v *providers.Volume, node string) {
	w.t.Helper()
	require.NoError(w.t, p.Detach(w.t.Context(), v.ID, node, false))
	w.settle()
}

// settle lets all actions end.
func (w *world) settle() { time.Sleep(10 * time.Second) }

// holder is the server that truly has the volume, "" for none.
func (w *world) holder(id string) string {
	v, _ := w.cloud.Volume(id)
	if len(v.Attachments) == 0 {
		return ""
	}
	return v.Attachments[0].Instance
}

// as makes a request as the console does, beside all providers.
func (w *world) as(server, method, path, body string) (status int, answer string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, "https://api.hetzner.cloud/v1"+path, strings.NewReader(body))
	require.NoError(w.t, err)
	r.Header.Set("Authorization", "Bearer "+w.front.Token(server))
	response, err := w.front.Transport(server).RoundTrip(r)
	require.NoError(w.t, err)
	b, err := io.ReadAll(response.Body)
	require.NoError(w.t, err)
	return response.StatusCode, string(b)
}

func (w *world) must(server, method, path, body string) string {
	w.t.Helper()
	status, answer := w.as(server, method, path, body)
	require.Less(w.t, status, 300, answer)
	return answer
}

func (w *world) protected(id string) bool {
	v, _ := w.cloud.Volume(id)
	_, is := v.Tags["protected"]
	return is
}
