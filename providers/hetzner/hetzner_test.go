package hetzner

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/providers/rest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

// A test must not depend on the environment: not on its settings, nor on its proxies and certificates.
func TestMain(m *testing.M) {
	for _, setting := range os.Environ() {
		name, _, _ := strings.Cut(setting, "=")
		if strings.HasPrefix(name, "HCLOUD_") || strings.HasSuffix(strings.ToUpper(name), "_PROXY") || strings.HasPrefix(name, "SSL_CERT_") {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// rig is a simulated Hetzner Cloud behind a socket, and servers with a metadata service each.
type rig struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *hetzner.Front
	url   string
	disks *loop.Backend // nil: attachments have nothing behind them

	mu    sync.Mutex
	nodes map[string]*node
}

// node is one server, and the way from it to the API.
type node struct {
	id, metadata string
	calls        *counter
}

// counter counts the calls to the API.
type counter struct {
	api string

	mu sync.Mutex
	n  int
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), c.api) {
		c.mu.Lock()
		c.n++
		c.mu.Unlock()
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func newRig(t *testing.T, cfg cloud.Config, front hetzner.Config) *rig {
	t.Helper()
	cfg.Zones, cfg.ID = []string{"fsn1", "nbg1"}, hetzner.ID
	r := &rig{t: t, cloud: cloud.New(cfg), nodes: map[string]*node{}}
	r.disks, _ = cfg.Backend.(*loop.Backend)
	t.Cleanup(r.cloud.Close)
	front.Cloud = r.cloud
	r.front = hetzner.New(front)
	r.url = serve(t, r.front)
	return r
}

func serve(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// node returns the server of that name, made when it is first named.
func (r *rig) node(name string) *node {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[name]
	if n == nil {
		i := r.cloud.AddInstance(cloud.Instance{Zone: "fsn1"})
		if r.disks != nil {
			require.NoError(r.t, r.disks.Sysfs(i.ID, r.t.TempDir()))
		}
		n = &node{id: i.ID, metadata: serve(r.t, r.front.Metadata(i.ID)), calls: &counter{api: r.url}}
		r.nodes[name] = n
	}
	return n
}

// until waits for a server's state.
func (r *rig) until(server string, state cloud.InstanceState) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		i, _ := r.cloud.Instance(server)
		return i.State == state
	}, time.Minute, time.Millisecond)
}

func (r *rig) provider(name, cluster string) *Provider {
	r.t.Helper()
	n := r.node(name)
	p, err := New(Config{
		Cluster: cluster, Token: token(r.t, r.front.Token(n.id)), Endpoint: r.url + "/v1", Metadata: n.metadata, Transport: n.calls,
	})
	require.NoError(r.t, err)
	return p
}

func token(t *testing.T, value string) *rest.Token {
	t.Helper()
	token, err := rest.TokenFrom(env(tokenSetting, value), tokenSetting)
	require.NoError(t, err)
	return token
}

// env is an environment of names and values.
func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// What may happen to Hetzner's answers besides.
const (
	truncate providertest.Fault = "truncated answer"
	garbage  providertest.Fault = "an answer that is not Hetzner's"
)

var faults = map[providertest.Fault]cloud.Fault{
	providertest.Refuse: cloud.Fail, providertest.LoseAnswer: cloud.LoseAnswer, providertest.Hang: cloud.Hang,
	providertest.Throttle: cloud.Throttle, truncate: cloud.Truncate, garbage: cloud.Garbage,
}

const size = 10 * gib

func harness(newCloud func(t *testing.T) *rig) providertest.Harness {
	return providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
		t.Helper()
		r := newCloud(t)
		c := &providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				return r.provider(node, cluster)
			},
			Size: size,
			Invalid: []providers.Spec{
				{Size: size, Type: "ssd"},
				{Size: size, IOPS: 3000},
				{Size: size, Throughput: 125},
				{Size: size, Encrypted: true},
				{Size: size, KMSKey: "key"},
				{Size: size, Snapshot: "1"},
				{Size: size, Zone: "nowhere1"},
				{Size: 10241 * gib},
				{Size: 1<<63 - 1},
				{Size: size, Tags: map[string]string{"hetzner.cloud/x": "y"}},
				{Size: size, Tags: map[string]string{"blockvol.cluster": "other"}},
				{Size: size, Tags: map[string]string{"x": "ä"}},
				{Size: size, Tags: map[string]string{"x ": "y"}},
				{Size: size, Tags: map[string]string{"a..b/x": "y"}},
				{Size: size, Record: providers.Record{"Upper": "x"}},
				{Size: size, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
			},
			Stop: func(_ *testing.T, node string) {
				r.cloud.Stop(r.node(node).id)
				r.until(r.node(node).id, cloud.Stopped)
			},
			Remove: func(_ *testing.T, node string) {
				r.cloud.Terminate(r.node(node).id)
				r.until(r.node(node).id, cloud.Terminated)
			},
			Faults: []providertest.Fault{providertest.Refuse, providertest.LoseAnswer, providertest.Hang, providertest.Throttle, truncate, garbage},
			Break: func(_ *testing.T, node string, fault providertest.Fault) func() {
				return r.cloud.Inject(cloud.Rule{Caller: r.node(node).id, Fault: faults[fault]})
			},
			BreakCall: func(_ *testing.T, node string, n int, fault providertest.Fault) func() bool {
				calls := r.node(node).calls
				before := calls.count()
				remove := r.cloud.Inject(cloud.Rule{Caller: r.node(node).id, Fault: faults[fault], Skip: n - 1, Times: 1})
				return func() bool { remove(); return calls.count() >= before+n }
			},
		}
		if r.disks != nil {
			c.Device = func(t *testing.T, _ string, v *providers.Volume) string {
				t.Helper()
				return r.disks.Device(v.Serial)
			}
		}
		return c
	}}
}

func TestHetznerKeepsTheContract(t *testing.T) {
	t.Parallel()
	providertest.Run(t, harness(func(t *testing.T) *rig {
		t.Helper()
		return newRig(t, cloud.Config{}, hetzner.Config{})
	}))
}

func TestHetznerKeepsTheContractWithDisks(t *testing.T) {
	t.Parallel()
	providertest.Run(t, harness(func(t *testing.T) *rig {
		t.Helper()
		disks, err := loop.New(t.TempDir())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, disks.Close()) })
		disks.ShowAs(loop.SCSI)
		return newRig(t, cloud.Config{Backend: disks}, hetzner.Config{})
	}))
}

// Hetzner's reference does not say when a volume shows the server that it is being attached to.
func TestHetznerKeepsTheContractIfAnAttachShowsLate(t *testing.T) {
	t.Parallel()
	providertest.Run(t, harness(func(t *testing.T) *rig {
		t.Helper()
		return newRig(t, cloud.Config{Times: cloud.Times{Attach: 10 * time.Millisecond, Detach: 10 * time.Millisecond}}, hetzner.Config{Late: true})
	}))
}
