package managed

import (
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
)

const (
	// remembered is how long a write is remembered: providers.MaxStale, and the time that an answer may take.
	remembered = providers.MaxStale + 20*time.Second
	// absenceGap is the longest time between two answers that lack a node and count as one absence.
	absenceGap = time.Minute
)

// memory is what this process has written for as long as answers may not show it, and what it has read lately. It is on only for
// clouds whose answers may be stale (Cloud.Stale).
type memory struct {
	on bool

	mu      sync.Mutex
	tidied  time.Time
	created map[string]creation           // by name: volumes created or adopted
	hidden  map[life]time.Time            // volumes deleted, forgotten or failed: until when answers may show them
	entries map[string]map[string]writing // by id and key: entries of records
	sizes   map[string]resizing           // by id
	ours    map[string]time.Time          // by id: when a disk was last known to be a volume of this cluster
	there   map[string]time.Time          // by id: when a disk was last known to exist
	absent  map[string]absence            // by node: since when the cloud does not show it
}

// life is a volume from the moment it gets a name until it loses it. If it gets the same name again, that is another life.
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

// lock locks the memory, and drops what answers show by now, at most once a second: a list of thousands of volumes locks it for
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

// prune deletes the entries that are over. If there were many, it also frees their memory, which a map would keep.
func prune[K comparable, V any](m *map[K]V, over func(K, V) bool) {
	before := len(*m)
	maps.DeleteFunc(*m, over)
	if before-len(*m) > 1000 {
		*m = maps.Clone(*m)
	}
}

// create notes that this process has created or adopted the volume.
func (m *memory) create(name, id string) {
	if !m.on {
		return
	}
	defer m.lock()()
	m.created[name] = creation{id, time.Now()}
	m.ours[id], m.there[id] = time.Now(), time.Now()
}

// lately returns the volumes, by name, that this process created so recently that an answer may not show them.
func (m *memory) lately() map[string]creation {
	defer m.lock()()
	return maps.Clone(m.created)
}

// hide notes that this life of the volume is over, although answers may show it for up to atMost.
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

// lose notes that the disk does not exist.
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

// complete adds to the record of a volume what this process has written and the answer does not show yet, and returns its size. An
// entry with another value stays: another node wrote it later.
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

// missing notes whether the answer to a question asked at that time shows the node. It reports whether the node is gone for
// certain: if the answers may be stale, two that lack it must be providers.MaxStale apart.
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
	return asked.Sub(a.since) >= providers.MaxStale
}
