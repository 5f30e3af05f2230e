package digitalocean

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/providers/rest"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

const region = "nyc3"

// rig is a simulated DigitalOcean behind a socket, and droplets with a metadata service each.
type rig struct {
	t     *testing.T
	cloud *cloud.Cloud
	front *front.Front
	url   string
	disks *loop.Backend // nil: attachments have nothing behind them

	mu    sync.Mutex
	nodes map[string]*node
}

// node is one droplet, and the way from it to DigitalOcean.
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

func serve(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func newRig(t *testing.T, cfg cloud.Config, shown front.Config) *rig {
	t.Helper()
	cfg.Zones, cfg.ID = []string{region, "ams3"}, front.ID
	r := &rig{t: t, cloud: cloud.New(cfg), nodes: map[string]*node{}}
	t.Cleanup(r.cloud.Close)
	shown.Cloud = r.cloud
	r.front = front.New(shown)
	r.url = serve(t, r.front)
	if r.disks, _ = cfg.Backend.(*loop.Backend); r.disks != nil {
		r.disks.ShowAs(func(disk string) loop.Identity { return loop.SCSI(r.front.Serial(disk)) })
	}
	return r
}

// node returns the droplet of that name, made when it is first named.
func (r *rig) node(name string) *node {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[name]
	if n == nil {
		i := r.cloud.AddInstance(cloud.Instance{})
		if r.disks != nil {
			require.NoError(r.t, r.disks.Sysfs(i.ID, r.t.TempDir()))
		}
		n = &node{id: i.ID, metadata: serve(r.t, r.front.Metadata(i.ID)), calls: &counter{api: r.url}}
		r.nodes[name] = n
	}
	return n
}

func tokenOf(t *testing.T, value string) *rest.Token {
	t.Helper()
	token, err := rest.TokenFrom(func(name string) string { return map[string]string{settingToken: value}[name] }, settingToken)
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

// until waits for a droplet's state.
func (r *rig) until(instance string, state cloud.InstanceState) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		i, _ := r.cloud.Instance(instance)
		return i.State == state
	}, time.Minute, time.Millisecond)
}

// What may happen to DigitalOcean's answers besides.
const (
	truncate providertest.Fault = "truncated answer"
	garbage  providertest.Fault = "an answer that is not DigitalOcean's"
)

// contract runs the suite. Most of its time passes in waiting, so the runs are at once.
func contract(t *testing.T, faulty bool, newRig func(*testing.T) *rig) {
	t.Helper()
	faults := map[providertest.Fault]cloud.Fault{
		providertest.Refuse: cloud.Fail, providertest.LoseAnswer: cloud.LoseAnswer, providertest.Hang: cloud.Hang,
		providertest.Throttle: cloud.Throttle, truncate: cloud.Truncate, garbage: cloud.Garbage,
	}
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
		r := newRig(t)
		c := &providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				return r.provider(node, cluster)
			},
			Size:         gib,
			SerialIsName: true,
			Invalid: []providers.Spec{
				{},
				{Size: 16<<40 + 1},
				{Size: 1<<63 - 1},
				{Size: gib, Type: "fast"},
				{Size: gib, IOPS: 3000},
				{Size: gib, Throughput: 125},
				{Size: gib, Encrypted: true},
				{Size: gib, KMSKey: "key"},
				{Size: gib, Zone: "ams3"},
				{Size: gib, Snapshot: "none"},
				{Size: gib, Snapshot: "8fa70202-873f-11e6-8b68-000f533176b1"},
				{Size: gib, Tags: map[string]string{"no blanks": "x"}},
				{Size: gib, Tags: map[string]string{"x": strings.Repeat("y", 254)}},
				{Size: gib, Tags: map[string]string{"Blockvol": "cluster:other"}},
				{Size: gib, Tags: map[string]string{"": ""}},
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
		if !faulty {
			c.Break, c.BreakCall = nil, nil
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

func TestDigitalOceanKeepsTheContract(t *testing.T) {
	t.Parallel()
	contract(t, true, func(t *testing.T) *rig { t.Helper(); return newRig(t, cloud.Config{}, front.Config{}) })
}

// What droplet_ids shows while an action is under way, no reference tells: both ways must do.
func TestDigitalOceanKeepsTheContractWhileActionsTakeTheirTime(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]bool{"shown when they are over": false, "shown from the beginning": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract(t, false, func(t *testing.T) *rig {
				t.Helper()
				times := cloud.Times{Attach: 3 * time.Millisecond, Detach: 3 * time.Millisecond}
				return newRig(t, cloud.Config{Times: times}, front.Config{Early: early})
			})
		})
	}
}

func TestDigitalOceanKeepsTheContractWithDisks(t *testing.T) {
	t.Parallel()
	contract(t, true, func(t *testing.T) *rig {
		t.Helper()
		disks, err := loop.New(t.TempDir())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, disks.Close()) })
		return newRig(t, cloud.Config{Backend: disks}, front.Config{})
	})
}
