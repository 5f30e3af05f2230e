package peer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
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

	looking chan struct{} // has one element for each node that is greeted because another one asks about it
	looks   flights[struct{}]
	asked   flights[volume.Signs]

	mu      sync.Mutex
	nodes   map[string]*member
	leaving bool // this node says that it is stopping
	changed bool // the file does not have the nodes that were met
	saving  bool // somebody writes it
}

// member is another node.
type member struct {
	addresses []netip.Addr
	met       bool      // it has answered some node, or said hello; otherwise its port may be closed
	noted     time.Time // since when it is known
	own       sight     // what this node has heard of it itself
	told      sight     // what others have
	by        string    // who has told of told.heard
	otherKey  bool      // what was last heard of it here is that it has another key
}

// sight is when a node was last heard of, and when it said that it was stopping. Either is zero if it was not since the start.
type sight struct{ heard, left time.Time }

// heard is when the node was last heard of, and by whom; empty for this node.
func (n *member) heard() (at time.Time, by string) {
	if n.told.heard.After(n.own.heard) {
		return n.told.heard, n.by
	}
	return n.own.heard, ""
}

// left is when the node said that it was stopping; zero if it was heard of afterwards, for longer than a process takes to stop.
func (n *member) left() time.Time {
	at := n.own.left
	if n.told.left.After(at) {
		at = n.told.left
	}
	if heard, _ := n.heard(); heard.Sub(at) > stopping {
		return time.Time{}
	}
	return at
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
	// stopping is how long a process that has said that it is stopping may go on to ask and to answer.
	stopping = 10 * time.Second
	// maxMembers is how many nodes are known at most.
	maxMembers = 4096
)

// NewMembers reads the file, if there is one. self tells which node this is.
func NewMembers(self func(context.Context) (string, error), via Transport, file string, log logrus.FieldLogger) *Members {
	m := &Members{
		self: self, via: via, file: file, log: log, begun: time.Now(), wanted: make(chan struct{}, 1), nodes: make(map[string]*member),
		looking: make(chan struct{}, lookingAtOnce),
	}
	var saved map[string][]netip.Addr
	if text, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(text, &saved); err != nil {
			log.WithError(err).WithField("file", file).Warn("Which other nodes there were cannot be read: they are met anew")
		}
	}
	for id, addresses := range saved {
		if len(m.nodes) < maxMembers {
			m.nodes[id] = &member{addresses: addresses[:min(len(addresses), maxAddresses)], met: true, noted: m.begun}
		}
	}
	return m
}

// save remembers the nodes that were met, if that has changed. While one caller writes, others leave to it what is new.
func (m *Members) save() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.changed && !m.saving && m.file != "" {
		met := make(map[string][]netip.Addr)
		for id, n := range m.nodes {
			if n.met {
				met[id] = n.addresses
			}
		}
		text, err := json.Marshal(met)
		m.changed, m.saving = false, true
		m.mu.Unlock()
		if err == nil {
			err = host.ReplaceFile(m.file, m.file+".part", text, nil)
		}
		if err != nil {
			m.log.WithError(err).WithField("file", m.file).Warn("Which other nodes there are cannot be remembered")
		}
		m.mu.Lock()
		m.saving = false
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
	m.answered(want.To, addresses, err)
	return holding, err
}

// answered takes in what came of a question to a node: also an error can be a sign of life.
func (m *Members) answered(node string, addresses []netip.Addr, err error) {
	switch {
	case err == nil, errors.Is(err, ErrAlive):
		m.heard(node, true, addresses...)
	case errors.Is(err, ErrOtherKey):
		m.mu.Lock()
		defer m.mu.Unlock()
		if n := m.note(node, nil); n != nil {
			n.own.heard, n.otherKey = time.Now(), true
		}
	}
}

// heard takes in that this node has heard of another one itself. met tells that it has answered, or said hello.
func (m *Members) heard(node string, met bool, addresses ...netip.Addr) {
	defer m.save()
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.note(node, addresses); n != nil {
		n.own.heard, n.otherKey = time.Now(), false
		m.meet(n, met)
	}
}

// note returns the node, which is known from now on, unless there are too many: nil. The caller holds mu.
func (m *Members) note(node string, addresses []netip.Addr) *member {
	n := m.nodes[node]
	if n == nil {
		if len(m.nodes) >= maxMembers {
			return nil
		}
		n = &member{noted: time.Now()}
		m.nodes[node] = n
	}
	for _, a := range addresses {
		// What the node's own connection shows, or who was told by it, comes first; nothing that others tell takes an address away.
		if !slices.Contains(n.addresses, a) && len(n.addresses) < maxAddresses {
			n.addresses = append(n.addresses, a)
			m.changed = m.changed || n.met
		}
	}
	return n
}

// meet takes in whether a node has answered, or said hello. The caller holds mu.
func (m *Members) meet(n *member, met bool) {
	if met && !n.met {
		n.met, m.changed = true, true
	}
}

// forgetOld forgets the nodes that nobody has heard of for a day.
func (m *Members) forgetOld() {
	defer m.save()
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.nodes)
	maps.DeleteFunc(m.nodes, func(_ string, n *member) bool {
		heard, _ := n.heard()
		return time.Since(heard) > rememberFor && time.Since(n.noted) > rememberFor
	})
	m.changed = m.changed || len(m.nodes) < before
}

// Forget forgets a node that the cloud says is gone.
func (m *Members) Forget(node string) {
	defer m.save()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nodes[node] != nil {
		delete(m.nodes, node)
		m.changed = true
	}
}

// Started notes that a node is being started, so that its silence is not taken for a failure for a while.
func (m *Members) Started(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[node]; n != nil {
		n.own.left = time.Now()
	}
}

// Knows tells whether the node is known.
func (m *Members) Knows(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[node] != nil
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
