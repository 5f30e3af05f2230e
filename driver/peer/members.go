package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
)

// Transport carries what nodes say to each other. A Client is one.
type Transport interface {
	Ask(ctx context.Context, addresses []netip.Addr, want volume.Want) (volume.Holding, error)
	Greet(ctx context.Context, to string, addresses []netip.Addr, hello Hello) (Hello, error)
}

// Members are the other nodes of a cluster as this one knows them: where they are, and when each was last heard of.
//
// They tell each other (Run): every 10 s a node says hello to one of the others, chosen at random, and both tell what they know of some
// more. So each learns of all, and the messages of a node are as many in a large cluster as in a small one. A node that is alive has been
// heard by somebody within the last 10 s or so, also one that cannot be asked, since its port is closed.
type Members struct {
	self func(context.Context) (string, error)
	via  Transport
	file string // remembers who was there, since a node that was never heard of may be behind a firewall; empty for none
	log  logrus.FieldLogger

	begun  time.Time
	wanted chan struct{} // has one element while a node is asked for a volume although nobody has been met

	mu    sync.Mutex
	nodes map[string]*member
}

// member is another node.
type member struct {
	addresses []netip.Addr
	met       bool      // somebody has heard of it; otherwise it is in the cloud's description only
	heard     time.Time // when last; zero if not since the start
	noted     time.Time // since when it is known
	by        string    // who has; empty for this node
	left      time.Time // when it said that it was stopping; zero if it was heard of since
}

const (
	// helloEvery is how often a node says hello to one of the others.
	helloEvery = 10 * time.Second
	// helloTries is to how many it does if they do not answer.
	helloTries = 3
	// helloNodes is of how many others they tell each other.
	helloNodes = 32
	// rememberFor is how long a node that nobody has heard of counts as one of the cluster.
	rememberFor = 24 * time.Hour
)

// NewMembers reads the file, if there is one. self tells which node this is.
func NewMembers(self func(context.Context) (string, error), via Transport, file string, log logrus.FieldLogger) *Members {
	m := &Members{self: self, via: via, file: file, log: log, begun: time.Now(), wanted: make(chan struct{}, 1), nodes: make(map[string]*member)}
	var saved map[string][]netip.Addr
	if text, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(text, &saved); err != nil {
			log.WithError(err).WithField("file", file).Warn("Which other nodes there were cannot be read: they are met anew")
		}
	}
	for id, addresses := range saved {
		m.nodes[id] = &member{addresses: addresses[:min(len(addresses), maxAddresses)], met: true, noted: m.begun}
	}
	return m
}

// save remembers the nodes that were met. The caller holds mu.
func (m *Members) save() {
	if m.file == "" {
		return
	}
	met := make(map[string][]netip.Addr)
	for id, n := range m.nodes {
		if n.met {
			met[id] = n.addresses
		}
	}
	text, err := json.Marshal(met)
	if err == nil {
		err = host.ReplaceFile(m.file, m.file+".part", text, nil)
	}
	if err != nil {
		m.log.WithError(err).WithField("file", m.file).Warn("Which other nodes there are cannot be remembered")
	}
}

// Ask asks the node for a volume.
func (m *Members) Ask(ctx context.Context, addresses []netip.Addr, want volume.Want) (volume.Holding, error) {
	if len(m.Known()) == 0 { // who is there matters now
		select {
		case m.wanted <- struct{}{}:
		default:
		}
	}
	holding, err := m.via.Ask(ctx, addresses, want)
	if err == nil {
		m.heard(want.To, addresses...)
	}
	return holding, err
}

// heard takes in a sign of life of a node that this one has had itself.
func (m *Members) heard(node string, addresses ...netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(node, addresses, time.Now(), "")
}

// note takes in that somebody has heard of a node at that time; zero if nobody has. The caller holds mu.
func (m *Members) note(node string, addresses []netip.Addr, at time.Time, by string) {
	n := m.nodes[node]
	if n == nil {
		n = &member{noted: time.Now()}
		m.nodes[node] = n
	}
	changed := !n.met && !at.IsZero()
	if at.After(n.heard) {
		n.met, n.heard, n.by = true, at, by
		if at.After(n.left) {
			n.left = time.Time{}
		}
	}
	for _, a := range addresses {
		// What the node's own connection shows, or who was told by it, comes first; nothing that others tell takes an address away.
		if !slices.Contains(n.addresses, a) && len(n.addresses) < maxAddresses {
			n.addresses = append(n.addresses, a)
			changed = changed || n.met
		}
	}
	if changed {
		m.save()
	}
}

// forgetOld forgets the nodes that nobody has heard of for a day. The caller holds mu.
func (m *Members) forgetOld() {
	before := len(m.nodes)
	maps.DeleteFunc(m.nodes, func(_ string, n *member) bool {
		return time.Since(n.heard) > rememberFor && time.Since(n.noted) > rememberFor
	})
	if len(m.nodes) < before {
		m.save()
	}
}

// Forget forgets a node that the cloud says is gone.
func (m *Members) Forget(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nodes[node] != nil {
		delete(m.nodes, node)
		m.save()
	}
}

// Knows tells whether the node is known.
func (m *Members) Knows(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[node] != nil
}

// some returns the ids of so many nodes, chosen at random, but not of one. The caller holds mu.
func (m *Members) some(most int, but string) []string {
	ids := slices.DeleteFunc(slices.Collect(maps.Keys(m.nodes)), func(id string) bool { return id == but })
	slices.Sort(ids) // so that the order of a map has no part in the choice
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids[:min(len(ids), most)]
}

// Run says hello to the others until ctx ends. While none is known, find is asked for some, by node; it is told which nodes are known.
func (m *Members) Run(ctx context.Context, find func(ctx context.Context, known func(node string) bool) (map[string][]netip.Addr, error)) {
	m.run(ctx, find)
}

// Known are the nodes that somebody has heard of, sorted.
func (m *Members) Known() (nodes []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, n := range m.nodes {
		if n.met {
			nodes = append(nodes, id)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// String is for logs.
func (m *Members) String() string { return fmt.Sprint(m.Known()) }
