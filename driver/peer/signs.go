package peer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
)

const (
	// signsTimeout bounds the time for which others are asked about a node, and asking how many are asked at once.
	signsTimeout, asking = 15 * time.Second, 64
	// signsFor is how long what they have answered is good for others who want to know it.
	signsFor = 5 * time.Second

	// lookTimeout bounds the time for which a node that another one asks about is greeted first.
	lookTimeout = 2 * reachTimeout
	// lookAgain is how long what was heard of it is good, or that nothing was.
	lookAgain = 2 * time.Second
	// lookingAtOnce is how many nodes are greeted for that.
	lookingAtOnce = 16
)

// Signs asks a node whether it is there, and all others what they know of it.
//
// Those who ask about the same node at the same time, or within 5 s, share what the others have answered.
func (m *Members) Signs(ctx context.Context, node string) volume.Signs {
	signs := m.asked.get(ctx, node, signsFor, func() volume.Signs { return m.askAll(ctx, node) })
	signs.Answering, signs.Silent = slices.Clone(signs.Answering), slices.Clone(signs.Silent)
	m.mu.Lock()
	defer m.mu.Unlock()
	signs.Last = m.begun
	if n := m.nodes[node]; n != nil {
		signs.Known, signs.Left, signs.OtherKey = n.met, n.left(), n.otherKey
		if heard, by := n.heard(); heard.After(signs.Last) {
			signs.Last, signs.By = heard, by
		}
	}
	return signs
}

// askAll asks a node whether it is there, and all others what they know of it. It returns who has answered.
func (m *Members) askAll(ctx context.Context, node string) (signs volume.Signs) {
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
	var all sync.WaitGroup
	refused := false
	all.Go(func() { refused = errors.Is(m.greet(ctx, node, nil), syscall.ECONNREFUSED) })
	signs.Answering, signs.Silent = m.greetAll(ctx, others, func(h *Hello) { h.About = node })
	all.Wait()
	signs.Refused = refused
	return signs
}

// Reach says hello to all nodes that somebody has heard of, and returns those that answer and those that do not, sorted.
func (m *Members) Reach(ctx context.Context) (answering, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, signsTimeout)
	defer cancel()
	answering, silent = m.greetAll(ctx, m.Known(), nil)
	slices.Sort(answering)
	slices.Sort(silent)
	return answering, silent
}

// greetAll says hello to nodes, to a limited number at once, and returns those that answer and those that do not.
func (m *Members) greetAll(ctx context.Context, nodes []string, change func(*Hello)) (answering, silent []string) {
	var mu sync.Mutex
	var all sync.WaitGroup
	turn := make(chan struct{}, asking)
	for _, id := range nodes {
		all.Go(func() {
			err := inTurn(ctx, turn, func(ctx context.Context) error { return m.greet(ctx, id, change) })
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, id)
			} else {
				answering = append(answering, id)
			}
		})
	}
	all.Wait()
	return answering, silent
}

// look greets a node that another one asks about, unless it was heard of just now, so that one bad way does not make it silent. That
// other one waits for it. The greeting asks about nobody, so it ends here.
func (m *Members) look(ctx context.Context, node string) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	m.mu.Lock()
	n := m.nodes[node]
	need := n != nil && time.Since(n.own.heard) >= lookAgain
	m.mu.Unlock()
	if need {
		m.looks.get(ctx, node, lookAgain, func() struct{} {
			_ = inTurn(ctx, m.looking, func(ctx context.Context) error { return m.greet(ctx, node, nil) })
			return struct{}{}
		})
	}
}

// inTurn does it as soon as there is room in turn. Errors: those of do; ctx has ended before.
func inTurn(ctx context.Context, turn chan struct{}, do func(context.Context) error) error {
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
		return do(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flights let those who want the same at the same time share one answer. The zero value can be used.
type flights[T any] struct {
	mu  sync.Mutex
	all map[string]*flight[T]
}

type flight[T any] struct {
	done  chan struct{}
	ended time.Time // zero while it is under way
	cut   bool      // it ended with the context of the caller who made it
	value T
}

// get returns what do returns, or has returned to another caller less than fresh ago. do heeds ctx, and what it returns when that has ended
// is for this caller only.
func (f *flights[T]) get(ctx context.Context, key string, fresh time.Duration, do func() T) T {
	for {
		f.mu.Lock()
		there := f.all[key]
		if there == nil || !there.ended.IsZero() && (there.cut || time.Since(there.ended) >= fresh) {
			own := &flight[T]{done: make(chan struct{})}
			if f.all == nil {
				f.all = make(map[string]*flight[T])
			}
			maps.DeleteFunc(f.all, func(_ string, old *flight[T]) bool { return !old.ended.IsZero() && time.Since(old.ended) >= fresh })
			f.all[key] = own
			f.mu.Unlock()
			value := do()
			f.mu.Lock()
			own.value, own.ended, own.cut = value, time.Now(), ctx.Err() != nil
			f.mu.Unlock()
			close(own.done)
			return value
		}
		f.mu.Unlock()
		select {
		case <-there.done:
		case <-ctx.Done():
			return do()
		}
		f.mu.Lock()
		value, cut := there.value, there.cut
		f.mu.Unlock()
		if !cut {
			return value
		}
	}
}
