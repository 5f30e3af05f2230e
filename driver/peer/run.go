package peer

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
)

const (
	// lately is how long ago a node was heard of, or became known, that is greeted before others.
	lately = time.Minute
	// rarely is the round in which one of the others is greeted, too: a node that is back, or the other half of a cluster that was parted.
	rarely = 4
)

// Run says hello to the others until ctx ends. While none is known, find is asked for some, by node; it is told which nodes are known.
func (m *Members) Run(ctx context.Context, find func(ctx context.Context, known func(node string) bool) (map[string][]netip.Addr, error)) {
	const least, lonely, most = time.Minute, 5 * time.Minute, time.Hour
	var last, next time.Time // when find was asked, and when it is again
	for round, wait, wanted := 0, least, false; ; round++ {
		m.forgetOld()
		met := m.greetSome(ctx, round%rarely == rarely-1)
		// Once one is met, the others come by themselves; but two halves of a cluster of which neither knows the other stay apart.
		if now := time.Now(); !now.Before(next) || wanted && now.Sub(last) >= least {
			found, err := find(ctx, m.Knows)
			if err != nil {
				m.log.WithError(err).Debug("Which other nodes there are cannot be told")
			}
			m.mu.Lock()
			for id, addresses := range found {
				m.note(id, addresses)
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

// greetSome says hello to nodes until one has answered. Those that are probably dead are greeted if there are no others, and one if it is
// their turn: each costs seconds, in which this node says nothing to those that live.
func (m *Members) greetSome(ctx context.Context, turn bool) (met bool) {
	m.mu.Lock()
	live, dead := m.others()
	m.mu.Unlock()
	try := live
	if len(live) == 0 {
		try, turn = dead, false
	}
	for _, id := range try[:min(len(try), helloTries)] {
		if met = m.greet(ctx, id, nil) == nil; met {
			break
		}
	}
	if turn && len(dead) > 0 {
		met = m.greet(ctx, dead[0], nil) == nil || met
	}
	return met
}

// others returns the other nodes in a random order: those that were heard of lately, or have become known, and those that were not. The
// caller holds mu.
func (m *Members) others() (live, dead []string) {
	ids := slices.Sorted(maps.Keys(m.nodes)) // so that the order of a map has no part in the choice
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	for _, id := range ids {
		n := m.nodes[id]
		if heard, _ := n.heard(); time.Since(heard) <= lately || time.Since(n.noted) <= lately {
			live = append(live, id)
		} else {
			dead = append(dead, id)
		}
	}
	return live, dead
}

// Leave tells some of the others that this node is stopping on purpose, so that its silence is not taken for a failure for a while. Whom
// it answers afterwards learns it, too.
func (m *Members) Leave(ctx context.Context) {
	m.mu.Lock()
	m.leaving = true
	live, dead := m.others()
	m.mu.Unlock()
	some := slices.Concat(live, dead)
	var all sync.WaitGroup
	for _, id := range some[:min(len(some), helloNodes)] {
		all.Go(func() { _ = m.greet(ctx, id, nil) })
	}
	all.Wait()
}
