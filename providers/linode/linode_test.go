package linode

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
	"github.com/blockvol/blockvol/test/cloud/linode"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

func TestMain(m *testing.M) {
	linode.ForgetEnvironment()
	os.Exit(m.Run())
}

const region = "eu-test"

// rig is a simulated Linode behind a socket, and instances with a metadata service each.
type rig struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *linode.Front
	url   string
	disks *loop.Backend // nil: attachments have nothing behind them

	mu    sync.Mutex
	nodes map[string]*node
}

// node is one instance, and the way from it to the API.
type node struct {
	id, metadata string
	calls        *counter
}

// counter counts the requests to the API.
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

func newRig(t *testing.T, cfg cloud.Config) *rig {
	t.Helper()
	cfg.Zones, cfg.ID = []string{region, "us-test"}, linode.ID
	r := &rig{t: t, cloud: cloud.New(cfg), nodes: map[string]*node{}}
	r.disks, _ = cfg.Backend.(*loop.Backend)
	t.Cleanup(r.cloud.Close)
	r.front = linode.New(linode.Config{Cloud: r.cloud, Plain: []string{"us-test"}})
	if r.disks != nil {
		r.disks.ShowAs(func(disk string) loop.Identity { return loop.SCSI(r.front.Serial(disk)) })
	}
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
		i := r.cloud.AddInstance(cloud.Instance{Type: "g6-standard-8", Zone: region})
		if r.disks != nil {
			require.NoError(r.t, r.disks.Sysfs(i.ID, r.t.TempDir()))
		}
		n = &node{id: i.ID, metadata: serve(r.t, r.front.Metadata(i.ID)), calls: &counter{api: r.url}}
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

func tokenOf(t *testing.T, text string) *rest.Token {
	t.Helper()
	token, err := rest.TokenFrom(func(setting string) string { return map[string]string{"LINODE_TOKEN": text}[setting] }, "LINODE_TOKEN")
	require.NoError(t, err)
	return token
}

func (r *rig) provider(name, cluster string) *Provider {
	r.t.Helper()
	n := r.node(name)
	p, err := New(Config{Cluster: cluster, Token: tokenOf(r.t, r.front.Token(n.id)), API: r.url, Metadata: n.metadata, Transport: n.calls})
	require.NoError(r.t, err)
	return p
}

// device waits for the volume's device in the one kernel that there is.
func (r *rig) device(volume string) string {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.disks.Device(volume) != "" }, time.Minute, time.Millisecond)
	return r.disks.Device(volume)
}

func (r *rig) harness(faulty bool) *providertest.Cloud {
	const size = 10 * gib
	faults := map[providertest.Fault]cloud.Fault{
		providertest.Refuse: cloud.Fail, providertest.LoseAnswer: cloud.LoseAnswer, providertest.Hang: cloud.Hang,
		providertest.Throttle: cloud.Throttle, truncate: cloud.Truncate, garbage: cloud.Garbage,
	}
	c := &providertest.Cloud{
		Provider: func(t *testing.T, node, cluster string) providers.Provider {
			t.Helper()
			return r.provider(node, cluster)
		},
		Size: size,
		Invalid: []providers.Spec{
			{Size: size, Type: "nvme"},
			{Size: size, IOPS: 100},
			{Size: size, Throughput: 100},
			{Size: size, KMSKey: "key"},
			{Size: size, Snapshot: "1"},
			{Size: mostSize*gib + 1},
			{Size: 1<<63 - 1},
			{Size: size, Zone: "nowhere"},
			{Size: size, Zone: "us-test", Encrypted: true},
			{Size: size, Tags: map[string]string{"a": ""}},
			{Size: size, Tags: map[string]string{"long": strings.Repeat("x", 46)}},
			{Size: size, Tags: map[string]string{"bv": "cluster:other"}},
			{Size: size, Tags: map[string]string{"BVR:layout": ""}},
			{Size: size, Tags: map[string]string{"team": "a", "TEAM": "A"}},
			{Size: size, Record: providers.Record{"Upper": "x"}},
			{Size: size, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
		},
		SerialIsName: true, ModifyNeedsDetached: true,
		Stop: func(_ *testing.T, node string) {
			r.cloud.Stop(r.node(node).id)
			r.until(r.node(node).id, cloud.Stopped)
		},
		Remove: func(_ *testing.T, node string) {
			r.cloud.Terminate(r.node(node).id)
			r.until(r.node(node).id, cloud.Terminated)
		},
	}
	if r.disks != nil {
		c.Device = func(t *testing.T, _ string, v *providers.Volume) string {
			t.Helper()
			return r.device(v.ID)
		}
	}
	if faulty {
		c.Faults = []providertest.Fault{providertest.Refuse, providertest.LoseAnswer, providertest.Hang, providertest.Throttle, truncate, garbage}
		c.Break = func(_ *testing.T, node string, fault providertest.Fault) func() {
			return r.cloud.Inject(cloud.Rule{Caller: r.node(node).id, Fault: faults[fault]})
		}
		c.BreakCall = func(_ *testing.T, node string, n int, fault providertest.Fault) func() bool {
			calls := r.node(node).calls
			before := calls.count()
			remove := r.cloud.Inject(cloud.Rule{Caller: r.node(node).id, Fault: faults[fault], Skip: n - 1, Times: 1})
			return func() bool { remove(); return calls.count() >= before+n }
		}
	}
	return c
}

// What may happen to Linode's answers besides.
const (
	truncate providertest.Fault = "truncated answer"
	garbage  providertest.Fault = "an answer that is not Linode's"
)

func TestLinodeKeepsTheContract(t *testing.T) {
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
		return newRig(t, cloud.Config{}).harness(true)
	}})
}

// Changes take a moment here, and a Linode that is powered off loses its volumes, as it may be.
func TestLinodeKeepsTheContractWithDisksAndTime(t *testing.T) {
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
		disks, err := loop.New(t.TempDir())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, disks.Close()) })
		const moment = 20 * time.Millisecond
		return newRig(t, cloud.Config{
			Backend: disks, LetGo: true,
			Times: cloud.Times{Create: moment, Delete: moment, Attach: moment, Detach: moment, Modify: moment},
		}).harness(false) // the suite's hanging calls end before a question is asked again
	}})
}
