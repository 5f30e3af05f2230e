package peer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Hello is what a node says to another, and what that one answers.
type Hello struct {
	From    string
	To      string          // the node that is meant
	Leaving bool            `json:",omitempty"` // From is stopping on purpose
	About   string          `json:",omitempty"` // a node of which the answer is to tell what it knows
	Nodes   map[string]Sign `json:",omitempty"` // what From knows of some others
}

// Sign is what one node knows of another. Times are told as how long ago they were, since the clocks of two nodes may differ.
type Sign struct {
	Addresses []netip.Addr  `json:",omitempty"`
	Heard     time.Duration // since when it was not heard of; negative if it was not since the start of the process that tells it
	Left      time.Duration // since when it is stopping on purpose; 0 if it is not
}

const (
	maxNodes = 4 * helloNodes // in one message
	maxID    = 255            // bytes of a node's id
	// signsTimeout bounds the time for which others are asked about a node, and asking how many are asked at once.
	signsTimeout, asking = 15 * time.Second, 64
)

// check returns why a hello from the other side is not taken in.
func (h Hello) check() error {
	if h.From == "" || len(h.From) > maxID || len(h.Nodes) > maxNodes {
		return errors.New("this is no hello of a node")
	}
	for id, s := range h.Nodes {
		if id == "" || len(id) > maxID || len(s.Addresses) > maxAddresses {
			return fmt.Errorf("what is said of node %q is not what nodes say", sanitize.Clip(id))
		}
	}
	return nil
}

// Hello answers another node. at is where it has asked from. Errors: this is not the node that is meant; a hello that no node sends.
func (m *Members) Hello(ctx context.Context, hello Hello, at netip.Addr) (Hello, error) {
	self, err := m.self(ctx)
	switch {
	case err != nil:
		return Hello{}, err
	case hello.To != self:
		return Hello{}, fmt.Errorf("this is not node %s", sanitize.Clip(hello.To))
	case hello.From == self:
		return Hello{}, fmt.Errorf("this is node %s itself", self)
	}
	if err := hello.check(); err != nil {
		return Hello{}, err
	}
	m.heard(hello.From, at)
	m.learn(self, hello)
	answer := m.hello(self, hello.From)
	if hello.About != "" {
		m.mu.Lock()
		defer m.mu.Unlock()
		if n := m.nodes[hello.About]; n != nil {
			answer.Nodes[hello.About] = n.sign()
		}
	}
	return answer, nil
}

// sign is what this node tells of another. The caller holds mu.
func (n *member) sign() Sign {
	s := Sign{Addresses: n.addresses, Heard: -1}
	if !n.heard.IsZero() {
		s.Heard = time.Since(n.heard)
	}
	if !n.left.IsZero() {
		s.Left = max(time.Since(n.left), 1)
	}
	return s
}

// hello is what this node says to another.
func (m *Members) hello(self, to string) Hello {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := Hello{From: self, To: to, Nodes: make(map[string]Sign)}
	for _, id := range m.some(helloNodes, to) {
		h.Nodes[id] = m.nodes[id].sign()
	}
	return h
}

// learn takes in what another node knows.
func (m *Members) learn(self string, hello Hello) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if n := m.nodes[hello.From]; n != nil && hello.Leaving {
		n.left = now
	}
	for id, s := range hello.Nodes {
		if id == self || id == hello.From {
			continue
		}
		at := time.Time{}
		if s.Heard >= 0 {
			at = now.Add(-s.Heard)
			if s.Heard > rememberFor {
				continue
			}
		}
		m.note(id, s.Addresses, at, hello.From)
		if n, left := m.nodes[id], now.Add(-s.Left); n != nil && s.Left > 0 && !left.Before(n.heard) && left.After(n.left) {
			n.left = left
		}
	}
}

// greet says hello to a node, and takes in what it answers. Errors: it does not answer.
func (m *Members) greet(ctx context.Context, to string, change func(*Hello)) error {
	self, err := m.self(ctx)
	if err != nil {
		return err
	}
	hello := m.hello(self, to)
	if change != nil {
		change(&hello)
	}
	m.mu.Lock()
	var addresses []netip.Addr
	if n := m.nodes[to]; n != nil {
		addresses = n.addresses
	}
	m.mu.Unlock()
	answer, err := m.via.Greet(ctx, to, addresses, hello)
	if err == nil {
		err = answer.check()
	}
	if err != nil {
		return err
	}
	if answer.From != to {
		return fmt.Errorf("node %s answers in place of node %s", sanitize.Clip(answer.From), to)
	}
	m.heard(to, addresses...)
	m.learn(self, answer)
	return nil
}

func (m *Members) run(ctx context.Context, find func(context.Context, func(string) bool) (map[string][]netip.Addr, error)) {
	const least, lonely, most = time.Minute, 5 * time.Minute, time.Hour
	var last, next time.Time // when find was asked, and when it is again
	for wait, wanted := least, false; ; {
		met := false
		m.mu.Lock()
		m.forgetOld()
		some := m.some(helloTries, "")
		m.mu.Unlock()
		for _, id := range some {
			if met = m.greet(ctx, id, nil) == nil; met {
				break
			}
		}
		// Once one is met, the others come by themselves; but two halves of a cluster of which neither knows the other stay apart.
		if now := time.Now(); !now.Before(next) || wanted && now.Sub(last) >= least {
			found, err := find(ctx, m.Knows)
			if err != nil {
				m.log.WithError(err).Debug("Which other nodes there are cannot be told")
			}
			m.mu.Lock()
			for id, addresses := range found {
				m.note(id, addresses, time.Time{}, "")
			}
			m.mu.Unlock()
			last, next = now, now.Add(pause.Jitter(most))
			if !met {
				next = now.Add(pause.Jitter(wait))
				wait = min(2*wait, lonely)
			}
			if !met && len(found) > 0 {
				continue
			}
		}
		timer := time.NewTimer(pause.Jitter(helloEvery))
		select {
		case <-timer.C:
			wanted = false
		case <-m.wanted:
			wanted = true
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// Leave tells some of the others that this node is stopping on purpose, so that its silence is not taken for a failure for a while.
func (m *Members) Leave(ctx context.Context) {
	m.mu.Lock()
	some := m.some(helloNodes, "")
	m.mu.Unlock()
	var all sync.WaitGroup
	for _, id := range some {
		all.Go(func() { _ = m.greet(ctx, id, func(h *Hello) { h.Leaving = true }) })
	}
	all.Wait()
}

// Signs asks a node whether it is there, and all others what they know of it.
func (m *Members) Signs(ctx context.Context, node string) (signs volume.Signs) {
	ctx, cancel := context.WithTimeout(ctx, signsTimeout)
	defer cancel()
	m.mu.Lock()
	var others []string
	for id, n := range m.nodes {
		if id != node && n.met {
			others = append(others, id)
		}
	}
	m.mu.Unlock()
	var mu sync.Mutex
	var all sync.WaitGroup
	turn := make(chan struct{}, asking)
	all.Go(func() { _ = m.greet(ctx, node, nil) })
	for _, id := range others {
		all.Go(func() {
			turn <- struct{}{}
			err := m.greet(ctx, id, func(h *Hello) { h.About = node })
			<-turn
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				signs.Silent = append(signs.Silent, id)
			} else {
				signs.Answering = append(signs.Answering, id)
			}
		})
	}
	all.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	signs.Last = m.begun
	if n := m.nodes[node]; n != nil {
		signs.Known, signs.Left = n.met, n.left
		if n.heard.After(signs.Last) {
			signs.Last, signs.By = n.heard, n.by
		}
	}
	return signs
}
