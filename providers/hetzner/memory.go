package hetzner

import (
	"maps"
	"sync"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"
)

// memory is what this process has seen lately, and what it has begun.
type memory struct {
	mu    sync.Mutex
	seen  map[int64]sighting
	moves map[int64]move // the last of each volume, until its end is seen
}

// sighting is what is known of a volume since some time.
type sighting struct {
	at              time.Time
	ours, protected bool
}

// move is an attach or a detach that Hetzner has accepted.
type move struct {
	action int64 // its id
	server int64
	leaves bool // a detach
	at     time.Time
}

const (
	// sightingGood is how long the knowledge that a volume is this cluster's may serve.
	sightingGood = time.Minute
	// sightingKept is longer than any answer takes, so that an old one is known for what it is.
	sightingKept = 5 * time.Minute
)

// see notes what an answer says of a volume, or what this process has just made of it, unless something later is known.
func (m *memory) see(id int64, s sighting) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil {
		m.seen = make(map[int64]sighting)
	}
	if s.at.Before(m.seen[id].at) {
		return
	}
	if _, known := m.seen[id]; !known { // the time for it, since a list sees thousands
		maps.DeleteFunc(m.seen, func(_ int64, s sighting) bool { return len(m.seen) > 100 && time.Since(s.at) > sightingKept })
	}
	m.seen[id] = s
}

// knows returns what is known of a volume, if it is not too old.
func (m *memory) knows(id int64) (sighting, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.seen[id]
	return s, known && time.Since(s.at) < sightingGood
}

// begin notes an attach or a detach.
func (m *memory) begin(id int64, begun move) {
	begun.at = time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moves == nil {
		m.moves = make(map[int64]move)
	}
	m.moves[id] = begun
}

// moving returns what was begun with a volume, and has not been seen to be over.
func (m *memory) moving(id int64) (move, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	begun, is := m.moves[id]
	return begun, is
}

// end forgets what was begun, if nothing else has been begun since.
func (m *memory) end(id int64, begun move) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moves[id] == begun {
		delete(m.moves, id)
	}
}

// serverOf is the server that an action is about, 0 if it does not tell.
func serverOf(a *schema.Action) int64 {
	for _, r := range a.Resources {
		if r.Type == "server" {
			return r.ID
		}
	}
	return 0
}
