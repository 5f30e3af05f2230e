package aws

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
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

func TestMain(m *testing.M) {
	ec2.ForgetEnvironment()
	os.Exit(m.Run())
}

const region = "eu-test-1"

// rig is a simulated EC2 behind a socket, and instances with a metadata service each.
type rig struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *ec2.Front
	url   string
	disks *loop.Backend // nil: attachments have nothing behind them

	mu    sync.Mutex
	nodes map[string]*node
}

// node is one instance, and the way from it to EC2.
type node struct {
	id, metadata string
	client       *http.Client
	calls        *counter
}

// counter counts the calls to EC2.
type counter struct {
	ec2 string

	mu sync.Mutex
	n  int
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), c.ec2) {
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

func newRig(t *testing.T, cfg cloud.Config) *rig {
	t.Helper()
	if cfg.Zones == nil {
		cfg.Zones = []string{region + "a", region + "b"}
	}
	r := &rig{t: t, cloud: cloud.New(cfg), nodes: map[string]*node{}}
	r.disks, _ = cfg.Backend.(*loop.Backend)
	t.Cleanup(r.cloud.Close)
	r.front = ec2.New(ec2.Config{Cloud: r.cloud, Region: region, Account: "123456789012"})
	r.url = serve(t, r.front)
	return r
}

func serve(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// node returns the instance of that name, made when it is first named.
func (r *rig) node(name string) *node {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[name]
	if n == nil {
		zone := region + "a"
		if strings.HasPrefix(name, "far") {
			zone = region + "b"
		}
		i := r.cloud.AddInstance(cloud.Instance{Type: "m5.large", Zone: zone, RootDevice: "/dev/xvda"})
		if r.disks != nil {
			require.NoError(r.t, r.disks.Sysfs(i.ID, r.t.TempDir()))
		}
		n = &node{id: i.ID, metadata: serve(r.t, r.front.Metadata(i.ID, ec2.MetadataOptions{})), calls: &counter{ec2: r.url}}
		n.client = &http.Client{Transport: n.calls}
		r.nodes[name] = n
	}
	return n
}

// until waits for an instance's state.
func (r *rig) until(instance string, state cloud.InstanceState) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		i, _ := r.cloud.Instance(instance)
		return i.State == state
	}, time.Minute, time.Millisecond)
}

func (r *rig) provider(name, cluster string) *Provider {
	r.t.Helper()
	n := r.node(name)
	p, err := New(Config{Cluster: cluster, Endpoint: r.url, Metadata: n.metadata, HTTPClient: n.client})
	require.NoError(r.t, err)
	return p
}

func TestAWSKeepsTheContract(t *testing.T) {
	faults := map[providertest.Fault]cloud.Fault{
		providertest.Refuse: cloud.Fail, providertest.LoseAnswer: cloud.LoseAnswer, providertest.Hang: cloud.Hang,
		providertest.Throttle: cloud.Throttle, truncate: cloud.Truncate, garbage: cloud.Garbage,
	}
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
		disks, err := loop.New(t.TempDir())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, disks.Close()) })
		r := newRig(t, cloud.Config{Times: cloud.Times{Delete: 20 * time.Millisecond}, Backend: disks})
		return &providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				return r.provider(node, cluster)
			},
			Size: gib,
			Device: func(t *testing.T, _ string, v *providers.Volume) string {
				t.Helper()
				return disks.Device(v.ID)
			},
			Invalid: []providers.Spec{
				{Size: gib, Type: "gp9"},
				{Size: gib, Type: "gp3", IOPS: 2999},
				{Size: gib, Type: "io2", IOPS: 100}, // 4 GiB at least
				{Size: 4 * gib, Type: "io2"},
				{Size: gib, Type: "gp2", IOPS: 3000},
				{Size: gib, Throughput: 126 * 100},
				{Size: gib, Zone: "nowhere-1a"},
				{Size: gib, Snapshot: "snap-none"},
				{Size: 1<<63 - 1},
				{Size: gib, Tags: map[string]string{"aws:x": "y"}},
				{Size: gib, Tags: map[string]string{"blockvol:cluster": "other"}},
				{Size: gib, Record: providers.Record{"Upper": "x"}},
				{Size: gib, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
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
	}})
}

// What may happen to EC2's answers besides.
const (
	truncate providertest.Fault = "truncated answer"
	garbage  providertest.Fault = "an answer that is not EC2's"
)
