package cloudtest

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
	"github.com/blockvol/blockvol/providers/secret"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

// Front is a cloud's API, with a metadata service for each instance.
type Front interface {
	http.Handler
	Metadata(instance string) http.Handler
}

// Account is an account of a simulated cloud, for the suite of package providertest. With disks its services listen on sockets.
// Without, they do not, and the suite can use testing/synctest.
type Account[F Front] struct {
	Cloud *cloud.Cloud
	Front F
	URL   string        // of the API
	Disks *loop.Backend // nil: volumes have no devices

	t        *testing.T
	instance func(node string) cloud.Instance
	mu       sync.Mutex
	nodes    map[string]*Node
}

// Node is one instance and its connection to the cloud.
type Node struct {
	ID        string
	Metadata  string // URL of its metadata service
	Transport http.RoundTripper

	calls *counter
}

// NewAccount returns an account that is closed when the test ends. Function instance describes the instance of a node.
func NewAccount[F Front](t *testing.T, cfg cloud.Config, front func(*cloud.Cloud) F, instance func(node string) cloud.Instance) *Account[F] {
	t.Helper()
	a := &Account[F]{Cloud: cloud.New(cfg), t: t, instance: instance, nodes: map[string]*Node{}}
	a.Disks, _ = cfg.Backend.(*loop.Backend)
	t.Cleanup(a.Cloud.Close)
	a.Front = front(a.Cloud)
	if a.Disks == nil {
		a.URL = "http://api.test"
	} else {
		a.URL = serve(t, a.Front)
	}
	return a
}

// Disks returns a backend that is closed when the test ends.
func Disks(t *testing.T) *loop.Backend {
	t.Helper()
	disks, err := loop.New(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disks.Close()) })
	return disks
}

// Token returns the token of a setting with this value.
func Token(setting, value string) *secret.Secret {
	token, err := secret.From(func(name string) string { return map[string]string{setting: value}[name] }, setting)
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

// Node returns the node with this name. The first call starts its instance.
func (a *Account[F]) Node(name string) *Node {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[name]
	if n == nil {
		id := a.Cloud.AddInstance(a.instance(name)).ID
		metadata := a.Front.Metadata(id)
		calls := &counter{api: a.URL}
		n = &Node{ID: id, Transport: calls, calls: calls}
		if a.Disks == nil {
			n.Metadata, calls.next = "http://"+httpsim.MetadataHost, httpsim.InstanceTransport(a.Front, metadata)
		} else {
			n.Metadata, calls.next = serve(a.t, metadata), http.DefaultTransport
			require.NoError(a.t, a.Disks.Sysfs(id, a.t.TempDir()))
		}
		a.nodes[name] = n
	}
	return n
}

// waitState waits until the instance is in this state.
func (a *Account[F]) waitState(instance string, state cloud.InstanceState) {
	a.t.Helper()
	require.Eventually(a.t, func() bool {
		i, _ := a.Cloud.Instance(instance)
		return i.State == state
	}, time.Minute, time.Millisecond)
}

// counter counts the requests to the API.
type counter struct {
	api  string
	next http.RoundTripper

	mu sync.Mutex
	n  int
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), c.api) {
		c.mu.Lock()
		c.n++
		c.mu.Unlock()
	}
	return c.next.RoundTrip(r)
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// Faults of an answer beyond those of providertest.
const (
	truncate providertest.Fault = "truncated answer"
	garbage  providertest.Fault = "answer of something else"

	pageNotFound  providertest.Fault = "a gateway's 404 page"
	routeNotFound providertest.Fault = "a gateway's 404 of JSON"
	emptyNotFound providertest.Fault = "a gateway's empty 404"
)

var faults = map[providertest.Fault]cloud.Fault{
	providertest.Refuse: cloud.Fail, providertest.LoseAnswer: cloud.LoseAnswer, providertest.Hang: cloud.Hang,
	providertest.Throttle: cloud.Throttle, truncate: cloud.Truncate, garbage: cloud.Garbage,
	pageNotFound: cloud.PageNotFound, routeNotFound: cloud.RouteNotFound, emptyNotFound: cloud.EmptyNotFound,
}

// Harness adds to c what is the same for every account: how nodes stop and end, devices and, if faulty, all faults.
func (a *Account[F]) Harness(c providertest.Cloud, faulty bool) *providertest.Cloud {
	c.Stop = func(_ *testing.T, node string) {
		a.Cloud.Stop(a.Node(node).ID)
		a.waitState(a.Node(node).ID, cloud.Stopped)
	}
	c.Remove = func(_ *testing.T, node string) {
		a.Cloud.Terminate(a.Node(node).ID)
		a.waitState(a.Node(node).ID, cloud.Terminated)
	}
	c.Off = func(_ *testing.T, node string) bool {
		i, _ := a.Cloud.Instance(a.Node(node).ID)
		return i.State == cloud.Stopped || i.State == cloud.Terminated
	}
	c.Pace, c.HidePower = a.Cloud.SetChangeTimes, a.Cloud.HideStopping
	c.Calls = func(_ *testing.T, node string) int { return a.Node(node).calls.count() }
	if a.Disks == nil {
		c.Lag = a.Cloud.SetLag
	} else {
		c.Device = func(t *testing.T, _ string, v *providers.Volume) string {
			t.Helper()
			require.Eventually(t, func() bool { return a.Disks.Device(v.ID) != "" }, time.Minute, time.Millisecond)
			return a.Disks.Device(v.ID)
		}
	}
	if faulty {
		c.Faults = []providertest.Fault{providertest.Refuse, providertest.LoseAnswer, providertest.Hang, providertest.Throttle, truncate, garbage}
		c.NotFounds = []providertest.Fault{pageNotFound, routeNotFound, emptyNotFound}
		c.Break = func(_ *testing.T, node string, fault providertest.Fault) func() {
			return a.Cloud.Inject(cloud.Rule{Caller: a.Node(node).ID, Fault: faults[fault]})
		}
		// Each call of each change meets each fault. With real waits that takes minutes.
		if a.Disks != nil && testing.Short() {
			return &c
		}
		c.BreakCall = func(_ *testing.T, node string, n int, fault providertest.Fault) func() bool {
			calls := a.Node(node).calls
			before := calls.count()
			remove := a.Cloud.Inject(cloud.Rule{Caller: a.Node(node).ID, Fault: faults[fault], Skip: n - 1, Times: 1})
			return func() bool { remove(); return calls.count() >= before+n }
		}
	}
	return &c
}
