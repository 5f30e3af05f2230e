package controller

import (
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// fences are the nodes that this one has had powered off, or was refused that: several volumes may wait for one.
type fences struct {
	mu       sync.Mutex
	asked    map[string]fenced    // by node
	restarts map[string]bool      // nodes that are about to be started again
	off      map[string]time.Time // by node: when the cloud called it stopped last
	claims   map[string]time.Time // of other nodes: when each was seen first
}

type fenced struct {
	at      time.Time // of the last request
	again   time.Time // when there may be another
	told    time.Time // when the observer was told
	refusal error
}

// last is what became of the last request for the node, if it was not long ago.
func (f *fences) last(node string) (last fenced, lately bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last = f.asked[node]
	return last, time.Now().Before(last.again)
}

// begin notes a request for the node, unless there was one lately.
func (f *fences) begin(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.asked[node]
	if time.Now().Before(last.again) {
		return false
	}
	last.at, last.again, last.refusal = time.Now(), time.Now().Add(offAgain), nil
	f.asked[node] = last
	return true
}

// end notes what became of the request. It tells whether that is news to the observer.
func (f *fences) end(node string, refusal error) (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.asked[node]
	last.refusal = refusal
	if errors.Is(refusal, providers.ErrBusy) { // with something that takes seconds
		last.again = time.Now().Add(offBusy)
	}
	if news = refusal == nil && time.Since(last.told) > 10*offAgain; news {
		last.told = time.Now()
	}
	f.asked[node] = last
	return news
}

// sawOff notes that the cloud calls the node stopped.
func (f *fences) sawOff(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.off[node] = time.Now()
}

// lastOff is when the cloud called the node stopped last.
func (f *fences) lastOff(node string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.off[node]
}

// isFresh tells whether another node's claim counts, which it does for claimLife after it was seen first: clocks are not compared.
func (f *fences) isFresh(claim string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.claims[claim].IsZero() {
		maps.DeleteFunc(f.claims, func(_ string, first time.Time) bool { return time.Since(first) > rememberClaims })
		f.claims[claim] = time.Now()
	}
	return time.Since(f.claims[claim]) < claimLife
}

// starting tells whether nothing else is about to start the node again.
func (f *fences) starting(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.restarts[node]
	f.restarts[node] = true
	return !was
}

func (f *fences) started(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.restarts, node)
}
