package openstack

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/providers/rest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/loop"
	front "github.com/blockvol/blockvol/test/cloud/openstack"
)

// quick are times for a cloud whose reads do not lag, and a test that does not wait.
var quick = times{lag: 2 * time.Millisecond, life: time.Second, patience: 3 * time.Second / 2, ancient: time.Hour}

// rig is a simulated OpenStack behind a socket, and servers with a metadata service each.
type rig struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *front.Front
	url   string
	disks *loop.Backend // nil: attachments have nothing behind them

	mu    sync.Mutex
	nodes map[string]*node
}

// node is one server, and the way from it to the cloud.
type node struct {
	id, metadata string
	calls        *counter
}

// counter counts the calls to the cloud.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return http.DefaultTransport.RoundTrip(r)
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func newRig(t *testing.T, cfg cloud.Config) *rig {
	t.Helper()
	cfg.Zones, cfg.ID = []string{"nova"}, front.ID
	r := &rig{t: t, cloud: cloud.New(cfg), nodes: map[string]*node{}}
	r.disks, _ = cfg.Backend.(*loop.Backend)
	t.Cleanup(r.cloud.Close)
	r.front = front.New(front.Config{Cloud: r.cloud, Types: []string{"__DEFAULT__", "fast"}, Gigabytes: 100000})
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
		i := r.cloud.AddInstance(cloud.Instance{})
		if r.disks != nil {
			require.NoError(r.t, r.disks.Sysfs(i.ID, r.t.TempDir()))
		}
		n = &node{id: i.ID, metadata: serve(r.t, r.front.Metadata(i.ID)) + "/openstack/latest/meta_data.json", calls: &counter{}}
		r.nodes[name] = n
	}
	return n
}

func secretOf(t *testing.T, secret string) *rest.Token {
	t.Helper()
	token, err := rest.TokenFrom(func(name string) string { return map[string]string{"SECRET": secret}[name] }, "SECRET")
	require.NoError(t, err)
	return token
}

func (r *rig) provider(name, cluster string) *Provider {
	r.t.Helper()
	n := r.node(name)
	id, secret := r.front.Credentials(n.id)
	p, err := New(Config{
		Cluster: cluster, Auth: gophercloud.AuthOptions{IdentityEndpoint: r.url + "/identity/v3", ApplicationCredentialID: id},
		Secret: secretOf(r.t, secret), Metadata: n.metadata, Transport: n.calls,
	})
	require.NoError(r.t, err)
	p.times = quick
	return p
}

// until waits for a server's state.
func (r *rig) until(instance string, state cloud.InstanceState) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		i, _ := r.cloud.Instance(instance)
		return i.State == state
	}, time.Minute, time.Millisecond)
}

// What may happen to the cloud's answers besides.
const (
	truncate providertest.Fault = "truncated answer"
	garbage  providertest.Fault = "an answer that is not the cloud's"
)

var faults = map[providertest.Fault]cloud.Fault{
	providertest.Refuse: cloud.Fail, providertest.LoseAnswer: cloud.LoseAnswer, providertest.Hang: cloud.Hang,
	providertest.Throttle: cloud.Throttle, truncate: cloud.Truncate, garbage: cloud.Garbage,
}

// keepsTheContract runs the suite over HTTP, with a cloud of that kind.
func keepsTheContract(t *testing.T, configure func(t *testing.T) cloud.Config) {
	t.Helper()
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
		r := newRig(t, configure(t))
		c := &providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				return r.provider(node, cluster)
			},
			Size: gib,
			Invalid: []providers.Spec{
				{},
				{Size: gib, Type: "no such type"},
				{Size: gib, Zone: "nowhere"},
				{Size: gib, IOPS: 3000},
				{Size: gib, Throughput: 125},
				{Size: gib, Encrypted: true},
				{Size: gib, KMSKey: "key"},
				{Size: gib, Snapshot: "none"},
				{Size: gib, Snapshot: front.ID(cloud.ASnapshot, 1)},
				{Size: 1<<63 - 1},
				{Size: gib, Tags: map[string]string{"blockvol:cluster": "other"}},
				{Size: gib, Tags: map[string]string{"owner/team": "x"}},
				{Size: gib, Tags: map[string]string{"owner": strings.Repeat("x", 256)}},
				{Size: gib, Tags: map[string]string{"owner": "😀"}},
				{Size: gib, Record: providers.Record{"Upper": "x"}},
				{Size: gib, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
			},
			InvalidChanges: []providers.Change{{Type: "fast"}},
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
				return r.disks.Device(v.ID)
			}
		}
		return c
	}})
}

func TestOpenStackKeepsTheContract(t *testing.T) {
	keepsTheContract(t, func(*testing.T) cloud.Config { return cloud.Config{} })
}

func TestOpenStackKeepsTheContractWithDisks(t *testing.T) {
	keepsTheContract(t, func(t *testing.T) cloud.Config {
		disks, err := loop.New(t.TempDir())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, disks.Close()) })
		disks.ShowAs(loop.Virtio)
		return cloud.Config{Times: cloud.Times{Delete: 20 * time.Millisecond}, Backend: disks}
	})
}
