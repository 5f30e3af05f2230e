// Package recent remembers what a cloud has last said of things, for as long as that may serve without asking again.
package recent

import (
	"maps"
	"sync"
	"time"
)

// Map has of each key the last that was said. An answer that comes late is known for what it is: one to a question that was
// asked before what is known became known is ignored. The zero Map is ready.
//
// What has become old may be forgotten at any time, so that it must be asked for again.
type Map[K comparable, V any] struct {
	mu    sync.Mutex
	known map[K]word[V]
	full  int // how many keys there are when the old ones are looked for next
}

type word[V any] struct {
	at    time.Time
	value V
}

// How long the knowledge that a volume is this cluster's may serve. It can only change while nobody holds the volume.
const (
	WhileFree = time.Minute
	WhileHeld = 365 * 24 * time.Hour
)

const (
	// many is the least number of keys at which the old ones are looked for.
	many = 1000
	// old is longer than any answer takes.
	old = time.Hour
)

// Put notes what an answer says that was asked for at that time, or what this process has just made of the thing.
func (m *Map[K, V]) Put(key K, asked time.Time, value V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, is := m.known[key]
	switch {
	case asked.Before(before.at):
		return
	case m.known == nil:
		m.known = make(map[K]word[V])
	case !is && len(m.known) >= max(m.full, many):
		maps.DeleteFunc(m.known, func(_ K, w word[V]) bool { return time.Since(w.at) > old })
		m.full = 2 * len(m.known) // not for each key of a list of thousands
	}
	m.known[key] = word[V]{asked, value}
}

// Get returns what is known, if that is not older than so.
func (m *Map[K, V]) Get(age time.Duration, key K) (value V, is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.known[key] // of long ago if it is not known
	if time.Since(w.at) >= age {
		return value, false
	}
	return w.value, true
}
