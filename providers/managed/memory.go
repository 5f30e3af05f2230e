package managed

import (
	"maps"
	"sync"
	"time"
)

const (
	// Lag is how old an answer may be when it comes, if the cloud does not say that its answers are never old.
	Lag = 10 * time.Second
	// remembered is how long what was written is kept in mind where answers may be old: an answer may itself take a while.
	remembered = Lag + 20*time.Second
	// absenceGap is the longest time between two answers without a node that count as one absence.
	absenceGap = time.Minute
)

// memory is what this process has written lately, for as long as an answer may not show it, and what it has read lately. It serves
// clouds whose answers may be older than what was written before the question (Cloud.Stale); of others nothing is remembered.
type memory struct {
	on bool

	mu      sync.Mutex
	tidied  time.Time
	created map[string]creation           // by name: volumes created or adopted
	hidden  map[life]time.Time            // deleted, forgotten or failed, and until when answers may show them
	entries map[string]map[string]writing // by id and key: entries of records
	sizes   map[string]resizing           // by id
	ours    map[string]time.Time          // by id: when a disk was last known to be a volume of this cluster
	there   map[string]time.Time          // by id: when a disk was last known to exist
	absent  map[string]absence            // by node: that the cloud does not show it
}

// life is a volume from when it gets a name until it loses it. The same name given to it again is another life.
type life struct{ id, name, claim string }

type creation struct {
	id string
	at time.Time
}

type writing struct {
	value string
	at    time.Time
}

type resizing struct {
	bytes int64
	at    time.Time
}

type absence struct{ since, last time.Time }

// lock locks the memory, and forgets what answers show by now. A list of thousands of volumes must not go through all of it for
// each.
func (m *memory) lock() (unlock func()) {
	m.mu.Lock()
	if time.Since(m.tidied) < time.Second {
		return m.mu.Unlock
	}
	m.tidied = time.Now()
	if m.created == nil {
		m.created, m.hidden, m.entries = make(map[string]creation), make(map[life]time.Time), make(map[string]map[string]writing)
		m.sizes, m.ours, m.there, m.absent = make(map[string]resizing), make(map[string]time.Time), make(map[string]time.Time), make(map[string]absence)
	}
	old := func(at time.Time) bool { return time.Since(at) >= remembered }
	prune(&m.created, func(_ string, v creation) bool { return old(v.at) })
	prune(&m.hidden, func(_ life, until time.Time) bool { return time.Now().After(until) })
	prune(&m.sizes, func(_ string, r resizing) bool { return old(r.at) })
	prune(&m.ours, func(_ string, at time.Time) bool { return old(at) })
	prune(&m.there, func(_ string, at time.Time) bool { return old(at) })
	prune(&m.absent, func(_ string, a absence) bool { return time.Since(a.last) > absenceGap && old(a.last) })
	prune(&m.entries, func(_ string, written map[string]writing) bool {
		maps.DeleteFunc(written, func(_ string, w writing) bool { return old(w.at) })
		return len(written) == 0
	})
	return m.mu.Unlock
}

// prune deletes entries of a map. If there were many, it also frees their memory, which a map keeps otherwise.
func prune[K comparable, V any](m *map[K]V, over func(K, V) bool) {
	before := len(*m)
	maps.DeleteFunc(*m, over)
	if before-len(*m) > 1000 {
		*m = maps.Clone(*m)
	}
}

// create notes that this process created the volume, or gave it its name.
func (m *memory) create(name, id string) {
	if !m.on {
		return
	}
	defer m.lock()()
	m.created[name] = creation{id, time.Now()}
	m.ours[id], m.there[id] = time.Now(), time.Now()
}

// lately are the volumes that this process has created so lately that an answer may not show them, by name.
func (m *memory) lately() map[string]creation {
	defer m.lock()()
	return maps.Clone(m.created)
}

// hide notes that this life of the volume is over, although answers may go on showing it for so long.
func (m *memory) hide(of life, atMost time.Duration) {
	if !m.on {
		return
	}
	defer m.lock()()
	m.hidden[of] = time.Now().Add(atMost)
	m.drop(of.id)
}

func (m *memory) hides(of life) bool {
	defer m.lock()()
	_, is := m.hidden[of]
	return is
}

// lose notes that the cloud has no such disk.
func (m *memory) lose(id string) {
	defer m.lock()()
	m.drop(id)
	delete(m.there, id)
}

func (m *memory) drop(id string) {
	delete(m.ours, id)
	delete(m.entries, id)
	maps.DeleteFunc(m.created, func(_ string, v creation) bool { return v.id == id })
}

func (m *memory) mark(id, key, value string) {
	if !m.on {
		return
	}
	defer m.lock()()
	if m.entries[id] == nil {
		m.entries[id] = make(map[string]writing)
	}
	m.entries[id][key] = writing{value, time.Now()}
}

func (m *memory) resize(id string, bytes int64) {
	defer m.lock()()
	m.sizes[id] = resizing{bytes, time.Now()}
}

// complete adds to a volume of this cluster what this process has written since. An entry that has another value is another
// node's, later.
func (m *memory) complete(id string, record map[string]string, size int64) int64 {
	defer m.lock()()
	m.ours[id], m.there[id] = time.Now(), time.Now()
	for key, w := range m.entries[id] {
		if _, shown := record[key]; !shown {
			record[key] = w.value
		}
	}
	return max(size, m.sizes[id].bytes)
}

// known returns when the disk was last known to be a volume of this cluster, and to exist; the zero time if never.
func (m *memory) known(id string) (ours, there time.Time) {
	defer m.lock()()
	return m.ours[id], m.there[id]
}

// missing notes whether the cloud showed a node when it was asked at that time, and tells whether it can be believed that there is
// none: it has been asked again after as long as an answer may be old.
func (m *memory) missing(node string, shown bool, asked time.Time) bool {
	if !m.on {
		return !shown
	}
	defer m.lock()()
	if shown {
		delete(m.absent, node)
		return false
	}
	a, before := m.absent[node]
	if !before || asked.Sub(a.last) > absenceGap {
		a.since = asked
	}
	a.last = asked
	m.absent[node] = a
	return asked.Sub(a.since) >= Lag
}
