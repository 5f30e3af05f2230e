// Package rig gives the contract's suite of package providertest a simulated cloud with nodes by name: behind sockets if it has
// disks, and otherwise without, so that the suite can run in bubbles of testing/synctest.
package rig

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
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

// Front is a cloud's API, with a metadata service for each instance.
type Front interface {
	http.Handler
	Metadata(instance string) http.Handler
}

// Rig is one account of a simulated cloud.
type Rig[F Front] struct {
	Cloud *cloud.Cloud
	Front F
	URL   string        // of the API
	Disks *loop.Backend // nil: attachments have nothing behind them

	t        *testing.T
	instance func(node string) cloud.Instance
	mu       sync.Mutex
	nodes    map[string]*Node
}

// Node is one instance, and the way from it to the cloud.
type Node struct {
	ID, Metadata string // Metadata is the URL of its service
	Transport    http.RoundTripper

	calls *counter
}

// New returns a rig that ends with the test. Nodes are such instances as instance says.
func New[F Front](t *testing.T, cfg cloud.Config, front func(*cloud.Cloud) F, instance func(node string) cloud.Instance) *Rig[F] {
	t.Helper()
	r := &Rig[F]{Cloud: cloud.New(cfg), t: t, instance: instance, nodes: map[string]*Node{}}
	r.Disks, _ = cfg.Backend.(*loop.Backend)
	t.Cleanup(r.Cloud.Close)
	r.Front = front(r.Cloud)
	if r.Disks == nil {
		r.URL = "http://api.test"
	} else {
		r.URL = serve(t, r.Front)
	}
	return r
}

// Disks returns a backend that ends with the test.
func Disks(t *testing.T) *loop.Backend {
	t.Helper()
	disks, err := loop.New(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disks.Close()) })
	return disks
}

// Token is one that has been set.
func Token(setting, value string) *rest.Token {
	token, err := rest.TokenFrom(func(name string) string { return map[string]string{setting: value}[name] }, setting)
	if err != nil {
		panic(err)
	}
	return token
}

func serve(t *testing.T, h http.Handler) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// Node returns the node of that name, made when it is first named.
func (r *Rig[F]) Node(name string) *Node {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[name]
	if n == nil {
		id := r.Cloud.AddInstance(r.instance(name)).ID
		metadata := r.Front.Metadata(id)
		calls := &counter{api: r.URL}
		n = &Node{ID: id, Transport: calls, calls: calls}
		if r.Disks == nil {
			n.Metadata, calls.way = "http://"+httpsim.MetadataHost, httpsim.InstanceTransport(r.Front, metadata)
		} else {
			n.Metadata, calls.way = serve(r.t, metadata), http.DefaultTransport
			require.NoError(r.t, r.Disks.Sysfs(id, r.t.TempDir()))
		}
		r.nodes[name] = n
	}
	return n
}

// until waits for an instance's state.
func (r *Rig[F]) until(instance string, state cloud.InstanceState) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		i, _ := r.Cloud.Instance(instance)
		return i.State == state
	}, time.Minute, time.Millisecond)
}

// counter counts the calls to the API.
type counter struct {
	api string
	way http.RoundTripper

	mu sync.Mutex
	n  int
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), c.api) {
		c.mu.Lock()
		c.n++
		c.mu.Unlock()
	}
	return c.way.RoundTrip(r)
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// What may happen to a cloud's answers beside what providertest knows.
const (
	truncate providertest.Fault = "truncated answer"
	garbage  providertest.Fault = "an answer that is not the cloud's"

	pageNotFound  providertest.Fault = "a gateway's 404 page"
	routeNotFound providertest.Fault = "a gateway's 404 of JSON"
	emptyNotFound providertest.Fault = "a gateway's empty 404"
)

var faults = map[providertest.Fault]cloud.Fault{
	providertest.Refuse: cloud.Fail, providertest.LoseAnswer: cloud.LoseAnswer, providertest.Hang: cloud.Hang,
	providertest.Throttle: cloud.Throttle, truncate: cloud.Truncate, garbage: cloud.Garbage,
	pageNotFound: cloud.PageNotFound, routeNotFound: cloud.RouteNotFound, emptyNotFound: cloud.EmptyNotFound,
}

// Harness completes what the suite needs with what every rig has: nodes that stop and go, devices, and, if it is to be faulty,
// all faults.
func (r *Rig[F]) Harness(c providertest.Cloud, faulty bool) *providertest.Cloud {
	c.Stop = func(_ *testing.T, node string) {
		r.Cloud.Stop(r.Node(node).ID)
		r.until(r.Node(node).ID, cloud.Stopped)
	}
	c.Remove = func(_ *testing.T, node string) {
		r.Cloud.Terminate(r.Node(node).ID)
		r.until(r.Node(node).ID, cloud.Terminated)
	}
	if r.Disks != nil {
		c.Device = func(t *testing.T, _ string, v *providers.Volume) string {
			t.Helper()
			require.Eventually(t, func() bool { return r.Disks.Device(v.ID) != "" }, time.Minute, time.Millisecond)
			return r.Disks.Device(v.ID)
		}
	}
	if faulty {
		c.Faults = []providertest.Fault{providertest.Refuse, providertest.LoseAnswer, providertest.Hang, providertest.Throttle, truncate, garbage}
		c.NotFounds = []providertest.Fault{pageNotFound, routeNotFound, emptyNotFound}
		c.Break = func(_ *testing.T, node string, fault providertest.Fault) func() {
			return r.Cloud.Inject(cloud.Rule{Caller: r.Node(node).ID, Fault: faults[fault]})
		}
		// Each call of each change meets each fault: where waits take their time, that is minutes.
		if r.Disks != nil && testing.Short() {
			return &c
		}
		c.BreakCall = func(_ *testing.T, node string, n int, fault providertest.Fault) func() bool {
			calls := r.Node(node).calls
			before := calls.count()
			remove := r.Cloud.Inject(cloud.Rule{Caller: r.Node(node).ID, Fault: faults[fault], Skip: n - 1, Times: 1})
			return func() bool { remove(); return calls.count() >= before+n }
		}
	}
	return &c
}
