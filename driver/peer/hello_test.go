package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
)

// net of nodes that carries hellos, unless something is in the way.
type network struct {
	mu    sync.Mutex
	nodes map[string]*Members // those that run
	cut   map[[2]string]bool  // ways on which nothing passes, from and to
	delay time.Duration       // until a hello is there, or is given up
	said  int
	to    map[string]int // by node
}

// on is the network as one node has it.
type on struct {
	*network
	self string
}

func (o on) Ask(context.Context, []netip.Addr, volume.Want) (volume.Holding, error) {
	return volume.Holding{}, net.ErrClosed
}

func (o on) Greet(ctx context.Context, to string, _ []netip.Addr, hello Hello) (Hello, error) {
	o.mu.Lock()
	other := o.nodes[to]
	if o.cut[[2]string{o.self, to}] || o.nodes[o.self] == nil {
		other = nil
	}
	o.said++
	if o.to == nil {
		o.to = make(map[string]int)
	}
	o.to[to]++
	delay := o.delay
	o.mu.Unlock()
	if err := pause.For(ctx, delay); err != nil {
		return Hello{}, err
	}
	if other == nil {
		return Hello{}, net.ErrClosed
	}
	// As the wire has it.
	var heard, answer Hello
	if err := copyOf(&heard, hello); err != nil {
		return Hello{}, err
	}
	said, err := other.Hello(ctx, heard, netip.Addr{})
	if err != nil {
		return Hello{}, err
	}
	return answer, copyOf(&answer, said)
}

func copyOf(to *Hello, from Hello) error {
	text, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}

// talking lets so many nodes say hello to each other, each of which knows the first at the start.
func talking(t *testing.T, n int, story func(t *testing.T, w *network, nodes []*Members)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &network{nodes: map[string]*Members{}, cut: map[[2]string]bool{}}
		log := logrus.New()
		log.SetOutput(io.Discard)
		var nodes []*Members
		for i := range n {
			id := fmt.Sprintf("i-%d", i)
			m := NewMembers(func(context.Context) (string, error) { return id, nil }, on{w, id}, "", log)
			w.nodes[id] = m
			nodes = append(nodes, m)
		}
		for i, m := range nodes {
			go m.Run(t.Context(), func(context.Context, func(string) bool) (map[string][]netip.Addr, error) {
				if i == 0 {
					return nil, nil
				}
				return map[string][]netip.Addr{"i-0": nil}, nil
			})
		}
		story(t, w, nodes)
	})
}

func TestEachNodeComesToKnowAllOthers(t *testing.T) {
	talking(t, 12, func(t *testing.T, w *network, nodes []*Members) {
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		for _, m := range nodes {
			assert.Len(t, m.Known(), 11)
		}
		w.mu.Lock()
		before := w.said
		w.mu.Unlock()
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		perNode := (w.said - before) / 12 * 3
		t.Logf("%d hellos of a node in an hour", perNode)
		assert.InDelta(t, 480, perNode, 60, "however many nodes there are") // one each 5 to 10 s
	})
}

// What the others tell of a node decides whether it is powered off.
func TestTheLastSignOfLifeIsTheLatestThatAnybodyHad(t *testing.T) {
	talking(t, 5, func(t *testing.T, w *network, nodes []*Members) {
		time.Sleep(5 * time.Minute)
		w.mu.Lock()
		w.cut[[2]string{"i-1", "i-2"}], w.cut[[2]string{"i-2", "i-1"}] = true, true
		w.mu.Unlock()
		time.Sleep(5 * time.Minute)
		signs := nodes[1].Signs(t.Context(), "i-2")
		assert.True(t, signs.Known)
		assert.Less(t, time.Since(signs.Last), 20*time.Second, "others hear it")
		assert.NotEmpty(t, signs.By)
		assert.ElementsMatch(t, []string{"i-0", "i-3", "i-4"}, signs.Answering)
		assert.Empty(t, signs.Silent)

		w.mu.Lock()
		delete(w.nodes, "i-2")
		delete(w.nodes, "i-4")
		w.mu.Unlock()
		died := time.Now()
		time.Sleep(time.Minute)
		signs = nodes[1].Signs(t.Context(), "i-2")
		assert.True(t, signs.Known)
		assert.WithinDuration(t, died, signs.Last, 11*time.Second)
		assert.ElementsMatch(t, []string{"i-0", "i-3"}, signs.Answering)
		assert.Equal(t, []string{"i-4"}, signs.Silent)

		assert.False(t, nodes[1].Signs(t.Context(), "i-9").Known)
	})
}

// A node that cannot be asked, since its port is closed, says hello itself.
func TestANodeWhosePortIsClosedIsHeard(t *testing.T) {
	talking(t, 3, func(t *testing.T, w *network, nodes []*Members) {
		time.Sleep(5 * time.Minute)
		w.mu.Lock()
		w.cut[[2]string{"i-0", "i-2"}], w.cut[[2]string{"i-1", "i-2"}] = true, true
		w.mu.Unlock()
		for range 30 {
			time.Sleep(20 * time.Second)
			assert.Less(t, time.Since(nodes[0].Signs(t.Context(), "i-2").Last), 20*time.Second)
		}
	})
}

func TestANodeThatLeavesIsToldByThoseWhomItHasTold(t *testing.T) {
	talking(t, 4, func(t *testing.T, w *network, nodes []*Members) {
		time.Sleep(5 * time.Minute)
		w.mu.Lock()
		w.cut[[2]string{"i-1", "i-2"}] = true
		w.mu.Unlock()
		nodes[1].Leave(t.Context())
		left := time.Now()
		w.mu.Lock()
		delete(w.nodes, "i-1")
		w.mu.Unlock()
		time.Sleep(time.Minute)
		assert.WithinDuration(t, left, nodes[2].Signs(t.Context(), "i-1").Left, time.Second)
	})
}

func TestTheNodesThatWereMetAreRemembered(t *testing.T) {
	file := filepath.Join(t.TempDir(), "peers.json")
	log := logrus.New()
	log.SetOutput(io.Discard)
	self := func(context.Context) (string, error) { return "i-1", nil }
	m := NewMembers(self, on{&network{}, "i-1"}, file, log)
	_, err := m.Hello(t.Context(), Hello{From: "i-2", To: "i-1", Nodes: map[string]Sign{
		"i-3": {Met: true, Heard: time.Second, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.3")}}, "i-4": {Heard: -1},
	}}, netip.MustParseAddr("10.0.0.2"))
	require.NoError(t, err)
	again := NewMembers(self, on{&network{}, "i-1"}, file, log)
	assert.Equal(t, []string{"i-2", "i-3"}, again.Known(), "not one of which nobody has heard")
	signs := again.Signs(t.Context(), "i-3")
	assert.True(t, signs.Known)
	assert.Equal(t, again.begun, signs.Last, "as if it had been heard of at the start")
	again.Forget("i-3")
	assert.Equal(t, []string{"i-2"}, NewMembers(self, on{&network{}, "i-1"}, file, log).Known())

	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	assert.Empty(t, NewMembers(self, on{&network{}, "i-1"}, file, log).Known())
}

func TestAHelloIsForOneNodeAndShort(t *testing.T) {
	m := alone()
	many := map[string]Sign{}
	for i := range maxNodes + 1 {
		many[strconv.Itoa(i)] = Sign{}
	}
	for name, c := range map[string]struct {
		hello Hello
		says  string
	}{
		"for another":       {Hello{From: "i-2", To: "i-3"}, "this is not node i-3"},
		"of itself":         {Hello{From: "i-1", To: "i-1"}, "this is node i-1 itself"},
		"of nobody":         {Hello{To: "i-1"}, "this is no hello of a node"},
		"of a long name":    {Hello{From: strings.Repeat("x", 300), To: "i-1"}, "this is no hello of a node"},
		"of too many":       {Hello{From: "i-2", To: "i-1", Nodes: many}, "this is no hello of a node"},
		"of a nameless one": {Hello{From: "i-2", To: "i-1", Nodes: map[string]Sign{"": {}}}, "is not what nodes say"},
		"of many addresses": {Hello{From: "i-2", To: "i-1", Nodes: map[string]Sign{"i-3": {Addresses: make([]netip.Addr, 9)}}}, "is not what nodes say"},
	} {
		_, err := m.Hello(t.Context(), c.hello, netip.Addr{})
		require.ErrorContains(t, err, c.says, name)
	}
	assert.Empty(t, m.Known())
}

// Over the wire: with the key, and only then.
func TestNodesSayHello(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	here := alone()
	s := Serve(l, keys(t, secret), using(), here, log)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	at := netip.MustParseAddrPort(l.Addr().String())
	other := func(id, secret string) *Members {
		m := NewMembers(func(context.Context) (string, error) { return id, nil }, NewClient(keys(t, secret), at.Port(), nil), "", log)
		m.mu.Lock()
		m.note("i-1", []netip.Addr{at.Addr()})
		m.mu.Unlock()
		return m
	}
	require.Error(t, other("i-9", former).greet(t.Context(), "i-1", nil))
	assert.Empty(t, here.Known(), "a stranger is none of the cluster")
	require.NoError(t, other("i-2", secret).greet(t.Context(), "i-1", nil))
	assert.Equal(t, []string{"i-2"}, here.Known())
	third := other("i-3", secret)
	require.NoError(t, third.greet(t.Context(), "i-1", nil))
	assert.Equal(t, []string{"i-1", "i-2"}, third.Known())

	liar := answering(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"From":"i-7"}`) })
	fooled := NewMembers(func(context.Context) (string, error) { return "i-5", nil }, NewClient(keys(t, secret), liar.Port(), nil), "", log)
	fooled.mu.Lock()
	fooled.note("i-1", []netip.Addr{liar.Addr()})
	fooled.mu.Unlock()
	require.EqualError(t, fooled.greet(t.Context(), "i-1", nil), "node i-7 answers in place of node i-1")
	assert.Empty(t, fooled.Known())
}
