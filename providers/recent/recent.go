// Package recent caches the last answer about each key, ordered by when the question was asked.
package recent

import (
	"maps"
	"sync"
	"time"
)

// Map has the last answer about each key. It ignores a late answer: one to a question asked before the question whose answer it has.
// The zero Map is ready to use.
//
// Entries older than an hour may be dropped at any time; then the cloud must be asked again.
type Map[K comparable, V any] struct {
	mu    sync.Mutex
	known map[K]word[V]
	full  int // number of keys at which old entries are dropped next
}

type word[V any] struct {
	at    time.Time
	value V
}

// How long an answer that a volume is this cluster's is valid. That can only change while no node holds the volume.
const (
	WhileFree = time.Minute
	WhileHeld = 365 * 24 * time.Hour
)

const (
	// many is the least number of keys at which old entries are dropped.
	many = 1000
	// old is the age at which an entry is dropped: longer than any answer takes.
	old = time.Hour
)

// Put stores the answer to a question asked at that time, or what this process has just written.
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
		m.full = 2 * len(m.known) // so that a list of thousands does not search for each of its keys
	}
	m.known[key] = word[V]{asked, value}
}

// Get returns the entry of the key if it is younger than age.
func (m *Map[K, V]) Get(age time.Duration, key K) (value V, is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.known[key] // the zero word is old
	if time.Since(w.at) >= age {
		return value, false
	}
	return w.value, true
}
