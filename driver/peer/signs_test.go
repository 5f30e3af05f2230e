package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

// acquainted lets so many nodes, each of which has met all others, lie silent: none says hello by itself.
func acquainted(t *testing.T, n int, story func(t *testing.T, w *network, nodes []*Members)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &network{nodes: map[string]*Members{}, cut: map[[2]string]bool{}}
		var nodes []*Members
		for i := range n {
			id := fmt.Sprintf("i-%d", i)
			m := named(id, on{w, id})
			for other := range n {
				if other != i {
					m.heard(fmt.Sprintf("i-%d", other), true)
				}
			}
			w.nodes[id] = m
			nodes = append(nodes, m)
		}
		story(t, w, nodes)
	})
}

func named(id string, via Transport) *Members {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return NewMembers(func(context.Context) (string, error) { return id, nil }, via, "", log)
}

// part cuts the ways between two nodes.
func (n *network) part(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{a, b}], n.cut[[2]string{b, a}] = true, true
}

func (n *network) greetings() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.said
}

func TestOneBadWayDoesNotMakeANodeSilent(t *testing.T) {
	acquainted(t, 3, func(t *testing.T, w *network, nodes []*Members) {
		w.part("i-1", "i-2")
		time.Sleep(time.Minute)
		signs := nodes[1].Signs(t.Context(), "i-2")
		assert.Equal(t, time.Now(), signs.Last, "i-0 greets it when it is asked")
		assert.Equal(t, "i-0", signs.By)
		assert.Equal(t, 3, w.greetings(), "and nobody is asked in turn")
	})
}

func TestANodeThatIsAskedAboutOftenIsNotGreetedEachTime(t *testing.T) {
	acquainted(t, 3, func(t *testing.T, w *network, nodes []*Members) {
		w.delay = time.Second // of those that do not answer, too
		w.mu.Lock()
		delete(w.nodes, "i-2")
		w.mu.Unlock()
		time.Sleep(time.Minute)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				_, err := nodes[0].Hello(t.Context(), Hello{From: "i-1", To: "i-0", About: "i-2"}, netip.Addr{})
				assert.NoError(t, err)
			})
		}
		all.Wait()
		assert.Equal(t, 1, w.greetings())
		time.Sleep(lookAgain)
		_, err := nodes[0].Hello(t.Context(), Hello{From: "i-1", To: "i-0", About: "i-2"}, netip.Addr{})
		require.NoError(t, err)
		assert.Equal(t, 2, w.greetings())
	})
}

// What is told of a node is older when it arrives than when it was said. If it were told on, it would be younger with each message.
func TestADeadNodeFallsSilentAlsoWhereMessagesTakeLong(t *testing.T) {
	talking(t, 30, func(t *testing.T, w *network, nodes []*Members) {
		w.mu.Lock()
		w.delay = 2 * time.Second
		w.mu.Unlock()
		time.Sleep(5 * time.Minute)
		nodes[0].Leave(t.Context())
		w.mu.Lock()
		delete(w.nodes, "i-0")
		w.mu.Unlock()
		died := time.Now()
		time.Sleep(20 * time.Minute)
		for _, m := range nodes[1:] {
			m.mu.Lock()
			n := m.nodes["i-0"]
			heard, _ := n.heard()
			assert.WithinDuration(t, died, heard, 3*w.delay)
			assert.WithinDuration(t, died, n.left(), 3*w.delay)
			m.mu.Unlock()
		}
	})
}

// Some of a cluster's nodes go each day, and are remembered for one.
func TestDeadNodesAreGreetedRarely(t *testing.T) {
	acquainted(t, 18, func(t *testing.T, w *network, nodes []*Members) {
		w.delay = 2 * time.Second
		for id := range w.nodes {
			if i, _ := strconv.Atoi(id[2:]); i > 5 {
				delete(w.nodes, id)
			}
		}
		time.Sleep(2 * lately)
		nodes[1].heard("i-0", true)
		for i := range 5 {
			nodes[0].heard(fmt.Sprintf("i-%d", i+1), true)
		}
		ctx, end := context.WithCancel(t.Context())
		for _, m := range nodes[:6] {
			go m.Run(ctx, func(context.Context, func(string) bool) (map[string][]netip.Addr, error) { return nil, nil })
		}
		time.Sleep(2 * time.Hour)
		end()
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		live, dead := 0, 0
		for to, n := range w.to {
			if i, _ := strconv.Atoi(to[2:]); i > 5 {
				dead += n
			} else {
				live += n
			}
		}
		t.Logf("%d greetings of nodes that live, %d of others", live, dead)
		assert.InDelta(t, 6*2*330, live, 6*2*60, "one by each node each 5 to 10 s, and the time that they take")
		assert.Less(t, dead, live/3)
		assert.Len(t, w.to, 18, "one that is back must be found")
	})
}

func TestANodeThatStopsSaysSoUntilItsEnd(t *testing.T) {
	acquainted(t, 3, func(t *testing.T, w *network, nodes []*Members) {
		w.part("i-0", "i-2")
		nodes[0].Leave(t.Context())
		w.mu.Lock()
		clear(w.cut)
		w.mu.Unlock()
		require.NoError(t, nodes[2].greet(t.Context(), "i-0", nil), "it still answers")
		assert.Equal(t, time.Now(), nodes[2].Signs(t.Context(), "i-0").Left)
		time.Sleep(time.Second)
		require.NoError(t, nodes[0].greet(t.Context(), "i-1", nil))
		nodes[1].heard("i-0", true) // by an answer to a question for a volume
		assert.Equal(t, time.Now(), nodes[1].Signs(t.Context(), "i-0").Left)
		w.mu.Lock()
		w.nodes["i-0"] = named("i-0", on{w, "i-0"})
		w.mu.Unlock()
		time.Sleep(stopping + time.Second)
		assert.Zero(t, nodes[1].Signs(t.Context(), "i-0").Left, "it has been started again")
	})
}

func TestThoseWhoAskAboutANodeShareTheAnswer(t *testing.T) {
	acquainted(t, 3, func(t *testing.T, w *network, nodes []*Members) {
		w.delay = time.Second
		w.mu.Lock()
		delete(w.nodes, "i-2")
		w.mu.Unlock()
		time.Sleep(time.Minute)
		ask := func(ctx context.Context) volume.Signs { return nodes[1].Signs(ctx, "i-2") }
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { assert.Equal(t, []string{"i-0"}, ask(t.Context()).Answering) })
		}
		all.Wait()
		assert.Equal(t, 3, w.greetings())
		nodes[1].heard("i-2", true)
		time.Sleep(signsFor - time.Second)
		assert.Less(t, time.Since(ask(t.Context()).Last), signsFor, "what is heard of it meanwhile counts")
		assert.Equal(t, 3, w.greetings())
		time.Sleep(2 * time.Second)
		ask(t.Context())
		assert.Equal(t, 6, w.greetings())

		// What one who could not wait has got is nobody else's.
		time.Sleep(time.Minute)
		short, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		all.Go(func() { assert.Equal(t, []string{"i-0"}, ask(short).Silent) })
		synctest.Wait()
		all.Go(func() { assert.Equal(t, []string{"i-0"}, ask(t.Context()).Answering) })
		all.Wait()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		time.Sleep(time.Minute)
		assert.Equal(t, []string{"i-0"}, ask(ended).Silent)
	})
}

func TestWhatAnAnswerShowsOfANode(t *testing.T) {
	status := func(code int) netip.AddrPort {
		return answering(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) })
	}
	says := func(body string) netip.AddrPort {
		return answering(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
	}
	for name, c := range map[string]struct {
		at                   netip.AddrPort
		heard, met, otherKey bool
	}{
		"a version without hellos":    {status(http.StatusNotFound), true, true, false},
		"one that stops":              {status(http.StatusServiceUnavailable), true, true, false},
		"one that does not answer":    {status(http.StatusTeapot), true, true, false},
		"another node":                {at: status(http.StatusMisdirectedRequest)},
		"another node that is polite": {at: says(`{"From":"i-9"}`)},
		"a version that says more":    {says(`{"From":"i-1","Nodes":{"":{}}}`), true, true, false},
		"one with another key":        {serving(t, using(), keys(t, former)), true, false, true},
		"nobody":                      {at: netip.MustParseAddrPort("127.0.0.9:1")},
	} {
		t.Run(name, func(t *testing.T) {
			m := named("i-2", NewClient(keys(t, secret), c.at.Port(), nil))
			m.note("i-1", []netip.Addr{c.at.Addr(), netip.MustParseAddr("127.0.0.9")}) // where nobody is, whatever it was at the first
			before := time.Now()
			require.Error(t, m.greet(t.Context(), "i-1", nil))
			signs := m.Signs(t.Context(), "i-1")
			assert.Equal(t, c.heard, signs.Last.After(before))
			assert.Equal(t, c.met, signs.Known)
			assert.Equal(t, c.otherKey, signs.OtherKey)
			_, err := m.Ask(t.Context(), []netip.Addr{c.at.Addr()}, want)
			require.Error(t, err)
			m.heard("i-1", true)
			m.mu.Lock()
			defer m.mu.Unlock()
			assert.False(t, m.nodes["i-1"].otherKey, "it has the key now")
		})
	}
}

// A question for a volume is a sign of life, too.
func TestAHolderWithAnotherKeyIsAlive(t *testing.T) {
	at := serving(t, using(), keys(t, former))
	m := named("i-2", NewClient(keys(t, secret), at.Port(), nil))
	_, err := m.Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.ErrorIs(t, err, ErrOtherKey)
	m.mu.Lock()
	defer m.mu.Unlock()
	assert.WithinDuration(t, time.Now(), m.nodes["i-1"].own.heard, time.Minute)
}

// Which node it is may come from the cloud, which cannot always be asked.
func TestANodeThatDoesNotKnowItselfIsAlive(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	lost := NewMembers(func(context.Context) (string, error) { return "", errors.New("the cloud does not answer") }, nil, "", log)
	s := Serve(l, keys(t, secret), using(), lost, log)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	at := netip.MustParseAddrPort(l.Addr().String())
	c := NewClient(keys(t, secret), at.Port(), nil)
	_, err = c.Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.ErrorIs(t, err, ErrAlive)
	_, err = c.Greet(t.Context(), "i-1", []netip.Addr{at.Addr()}, Hello{From: "i-2", To: "i-1"})
	require.ErrorIs(t, err, ErrAlive)
}

// One that only asks may be of a version that says no hello and answers none: that it is silent later shows nothing.
func TestANodeThatAsksForAVolumeIsNotMetByThat(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	here := alone()
	s := Serve(l, keys(t, secret), using(), here, log)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	at := netip.MustParseAddrPort(l.Addr().String())
	c := NewClient(keys(t, secret), at.Port(), nil)
	_, err = c.Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.NoError(t, err)
	assert.Empty(t, here.Known())
	other := named("i-3", c)
	other.note("i-1", []netip.Addr{at.Addr()})
	require.NoError(t, other.greet(t.Context(), "i-1", nil))
	assert.Equal(t, []string{"i-1"}, other.Known(), "nor by what is told of it")
	other.mu.Lock()
	heard, by := other.nodes["i-2"].heard()
	other.mu.Unlock()
	assert.WithinDuration(t, time.Now(), heard, time.Minute)
	assert.Equal(t, "i-1", by)
	require.NoError(t, other.greet(t.Context(), "i-1", nil))
	_, err = c.Greet(t.Context(), "i-1", []netip.Addr{at.Addr()}, Hello{From: "i-2", To: "i-1"})
	require.NoError(t, err)
	assert.Equal(t, []string{"i-2", "i-3"}, here.Known())
}

func TestManyNodesAreRememberedAtOnceButNotAnyNumber(t *testing.T) {
	file := filepath.Join(t.TempDir(), "peers.json")
	m := alone()
	m.file = file
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() { m.heard(fmt.Sprintf("i-%d", 100+i), true) })
	}
	all.Wait()
	again := NewMembers(m.self, nil, file, m.log)
	assert.Len(t, again.Known(), 50)
	assert.Equal(t, m.Known(), again.Known())

	m.file = ""
	for i := range maxMembers {
		m.heard(fmt.Sprintf("j-%d", i), true)
	}
	known := m.Known()
	assert.Len(t, known, maxMembers)
	assert.True(t, slices.Contains(known, "i-100"))
	_, err := m.Hello(t.Context(), Hello{From: "k-1", To: "i-1", Leaving: true, Nodes: map[string]Sign{"k-2": {Met: true, Left: 1}}}, netip.Addr{})
	require.NoError(t, err)
	assert.Len(t, m.Known(), maxMembers)
	require.NoError(t, os.Remove(file))
}
