package hetzner

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
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
	cfg.Zones, cfg.ID = []string{"fsn1", "nbg1"}, hetzner.ID
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		front.Cloud = c
		test(t, &world{t: t, cloud: c, front: hetzner.New(front), sent: &sent{}})
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
	p, err := New(Config{Cluster: "main", Token: cloudtest.Token(tokenSetting, w.front.Token(server)), Transport: &sent{way: way, to: w.sent}})
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
	if r.URL.Hostname() != httpsim.MetadataHost {
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
	require.NoError(w.t, providertest.Attach(w.t.Context(), p, v.ID))
	w.settle()
}

func (w *world) detach(p *Provider, v *providers.Volume, node string) {
	w.t.Helper()
	require.NoError(w.t, p.Detach(w.t.Context(), v.ID, node, false))
	w.settle()
}

// settle lets all actions end.
func (w *world) settle() { time.Sleep(10 * time.Second) }

// as makes a request as the console does, beside all providers.
func (w *world) as(server, method, path, body string) (status int, answer string) {
	w.t.Helper()
	status, _, answer, err := httpsim.Send(w.t.Context(), w.front.Transport(server), method, "https://api.hetzner.cloud/v1"+path, body,
		"Authorization", "Bearer "+w.front.Token(server))
	require.NoError(w.t, err)
	return status, answer
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
