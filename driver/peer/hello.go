package peer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

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
	Met       bool          `json:",omitempty"` // it has answered, or said hello
	Heard     time.Duration // since when it was not heard of; negative if it was not since the start of the process that tells it
	Left      time.Duration // since when it is stopping on purpose; 0 if it is not
}

const (
	maxNodes = 4 * helloNodes // in one message
	maxID    = 255            // bytes of a node's id
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

// elsewhere is an error of a node that is not the one that is meant: no sign of life of that one.
type elsewhere string

// Error implements error.
func (e elsewhere) Error() string { return string(e) }

// isMeant fails unless this node is the one that is meant, and not the one that asks.
func (m *Members) isMeant(ctx context.Context, from, to string) (self string, err error) {
	self, err = m.self(ctx)
	switch {
	case err != nil:
		return "", err
	case to != self:
		return "", elsewhere("this is not node " + sanitize.Clip(to))
	case from == self:
		return "", elsewhere(fmt.Sprintf("this is node %s itself", self))
	}
	return self, nil
}

// Hello answers another node. at is where it has asked from. Errors: this is not the node that is meant; a hello that no node sends.
func (m *Members) Hello(ctx context.Context, hello Hello, at netip.Addr) (Hello, error) {
	self, err := m.isMeant(ctx, hello.From, hello.To)
	if err == nil {
		err = hello.check()
	}
	if err != nil {
		return Hello{}, err
	}
	m.heard(hello.From, true, at)
	m.learn(self, hello)
	if hello.About != "" {
		m.look(ctx, hello.About)
	}
	answer := m.hello(self, hello.From)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[hello.About]; n != nil {
		answer.Nodes[hello.About] = n.sign()
	}
	return answer, nil
}

// sign is what this node tells of another: only what it has heard itself. What is passed on would be younger each time, by the time for
// which the message is under way, and a dead node never be silent. The caller holds mu.
func (n *member) sign() Sign {
	s, now := Sign{Addresses: n.addresses, Met: n.met, Heard: -1}, time.Now()
	if !n.own.heard.IsZero() {
		s.Heard = now.Sub(n.own.heard)
	}
	if !n.own.left.IsZero() {
		s.Left = max(now.Sub(n.own.left), 1)
	}
	return s
}

// hello is what this node says to another.
func (m *Members) hello(self, to string) Hello {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := Hello{From: self, To: to, Leaving: m.leaving, Nodes: make(map[string]Sign)}
	live, dead := m.others()
	for _, id := range slices.Concat(live, dead) {
		// A node that this one has not heard of itself is told by those who have: or it would be remembered for ever.
		if n := m.nodes[id]; id != to && !n.own.heard.IsZero() && time.Since(n.own.heard) < rememberFor && len(h.Nodes) < helloNodes {
			h.Nodes[id] = n.sign()
		}
	}
	return h
}

// learn takes in what another node says.
func (m *Members) learn(self string, hello Hello) {
	defer m.save()
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if n := m.nodes[hello.From]; n != nil && hello.Leaving {
		n.own.left = now
	}
	for id, s := range hello.Nodes {
		if id == self || id == hello.From || s.Heard > rememberFor {
			continue
		}
		n := m.note(id, s.Addresses)
		if n == nil {
			continue
		}
		m.meet(n, s.Met)
		if at := now.Add(-s.Heard); s.Heard >= 0 && at.After(n.told.heard) {
			n.told.heard, n.by = at, hello.From
		}
		if at := now.Add(-s.Left); s.Left > 0 && at.After(n.told.left) {
			n.told.left = at
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
	if err == nil && answer.From != to {
		err = fmt.Errorf("node %s answers in place of node %s", sanitize.Clip(answer.From), to)
	} else if err == nil {
		if wrong := answer.check(); wrong != nil {
			err = shows{wrong, ErrAlive}
		}
	}
	m.answered(to, addresses, err)
	if err != nil {
		return err
	}
	m.learn(self, answer)
	return nil
}
