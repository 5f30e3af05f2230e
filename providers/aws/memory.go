package aws

import (
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/recent"
)

const (
	// lagging is how long a read of EC2 may not show what was written. AWS names no bound; what it describes are seconds.
	lagging = 10 * time.Second
	// remembered is how long what was written is kept in mind: the answer to a question may take as long as an attempt.
	remembered = lagging + attemptTimeout
	// absenceGap is the longest time between two answers without a node that count as one absence.
	absenceGap = time.Minute
)

// memory is what this process has written lately, for as long as a read may not show it, and what it has read lately. Of the
// volumes that this instance holds, it also keeps that they are this cluster's, which cannot change meanwhile.
type memory struct {
	holds func() map[string]bool // ids of the volumes on this instance

	mu      sync.Mutex
	tidied  time.Time
	made    map[string]made               // by name: volumes made or adopted
	hidden  map[life]time.Time            // deleted, forgotten or failed, and until when reads may show them
	entries map[string]map[string]writing // by id and key: entries of records
	sizes   map[string]resizing           // by id: modified
	freed   map[string]time.Time          // by id: when this instance gave it up
	ours    map[string]time.Time          // by id: when a volume was last known to be this cluster's
	there   map[string]time.Time          // by id: when a volume was last known to exist
	spent   map[turn]time.Time            // turns of ClientTokens that make no volume, and until when that is certain
	absent  map[string]absence            // by node: that EC2 does not show it
}

// life is a volume from when it gets a name until it loses it. The same name given to it again is another life.
type life struct{ id, name, turn string }

func lifeOf(id string, tags map[string]string) life { return life{id, tags[tagName], tags[tagTurn]} }

// turn is one of the ClientTokens of a name, see Provider.tokenOf.
type turn struct {
	name string
	n    int
}

type made struct {
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

// tidy forgets what EC2 shows by now. A list of thousands of volumes must not go through all of it for each.
func (m *memory) tidy() {
	if time.Since(m.tidied) < time.Second {
		return
	}
	m.tidied = time.Now()
	if m.made == nil {
		m.made, m.hidden, m.entries = make(map[string]made), make(map[life]time.Time), make(map[string]map[string]writing)
		m.sizes, m.freed, m.ours = make(map[string]resizing), make(map[string]time.Time), make(map[string]time.Time)
		m.there, m.spent, m.absent = make(map[string]time.Time), make(map[turn]time.Time), make(map[string]absence)
	}
	held := m.holds()
	old := func(at time.Time) bool { return time.Since(at) >= remembered }
	prune(&m.made, func(_ string, v made) bool { return old(v.at) })
	prune(&m.hidden, func(_ life, until time.Time) bool { return time.Now().After(until) })
	prune(&m.sizes, func(_ string, r resizing) bool { return old(r.at) })
	prune(&m.ours, func(id string, at time.Time) bool { return time.Since(at) >= recent.WhileFree && !held[id] })
	prune(&m.there, func(_ string, at time.Time) bool { return old(at) })
	prune(&m.freed, func(_ string, at time.Time) bool { return old(at) })
	prune(&m.spent, func(_ turn, until time.Time) bool { return time.Now().After(until) })
	prune(&m.absent, func(_ string, a absence) bool { return time.Since(a.last) > absenceGap && old(a.last) })
	prune(&m.entries, func(_ string, written map[string]writing) bool {
		maps.DeleteFunc(written, func(_ string, w writing) bool { return old(w.at) })
		return len(written) == 0
	})
}

// prune deletes entries of a map. If there were many, it also frees their memory, which a map keeps otherwise.
func prune[K comparable, V any](m *map[K]V, over func(K, V) bool) {
	before := len(*m)
	maps.DeleteFunc(*m, over)
	if before-len(*m) > 1000 {
		*m = maps.Clone(*m)
	}
}

func (m *memory) lock() (unlock func()) {
	m.mu.Lock()
	m.tidy()
	return m.mu.Unlock
}

// make notes that this process made the volume, or gave it its name.
func (m *memory) make(name, id string) {
	defer m.lock()()
	m.made[name] = made{id, time.Now()}
	m.ours[id], m.there[id] = time.Now(), time.Now()
}

// makes returns the volume of that name that this process has made, if so lately that a read may not show it.
func (m *memory) makes(name string) made {
	defer m.lock()()
	return m.made[name]
}

// names returns all that makes knows, by name.
func (m *memory) names() map[string]made {
	defer m.lock()()
	return maps.Clone(m.made)
}

// hide notes that this life of the volume is over, although reads may go on showing it for so long.
func (m *memory) hide(of life, atMost time.Duration) {
	defer m.lock()()
	m.hidden[of] = time.Now().Add(atMost)
	m.drop(of.id)
}

func (m *memory) hides(of life) bool {
	defer m.lock()()
	_, is := m.hidden[of]
	return is
}

// lose notes that EC2 has no such volume, by its answer to a write.
func (m *memory) lose(id string) {
	defer m.lock()()
	m.drop(id)
	delete(m.there, id)
}

func (m *memory) drop(id string) {
	delete(m.ours, id)
	delete(m.entries, id)
	maps.DeleteFunc(m.made, func(_ string, v made) bool { return v.id == id })
}

func (m *memory) mark(id, key, value string) {
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

// complete adds to a read what this process has written since. An entry that has another value is another node's, later.
func (m *memory) complete(v *providers.Volume) {
	defer m.lock()()
	m.ours[v.ID], m.there[v.ID] = time.Now(), time.Now()
	for key, w := range m.entries[v.ID] {
		if _, shown := v.Record[key]; !shown {
			v.Record[key] = w.value
		}
	}
	v.Size = max(v.Size, m.sizes[v.ID].bytes)
}

// known returns when the volume was last known to be this cluster's, and to exist; the zero time if never.
func (m *memory) known(id string) (ours, there time.Time) {
	defer m.lock()()
	return m.ours[id], m.there[id]
}

// free notes that this instance has given the volume up, hold that it has taken it.
func (m *memory) free(id string) {
	defer m.lock()()
	m.freed[id] = time.Now()
}

func (m *memory) hold(id string) {
	defer m.lock()()
	delete(m.freed, id)
}

// frees tells whether a read may still show the volume on this instance that has given it up.
func (m *memory) frees(id string) bool {
	defer m.lock()()
	at, is := m.freed[id]
	return is && time.Since(at) < lagging
}

// spend notes that a turn of a name's ClientToken makes no volume, at least for so long.
func (m *memory) spend(t turn, atLeast time.Duration) {
	if atLeast <= 0 {
		return
	}
	defer m.lock()()
	m.spent[t] = time.Now().Add(atLeast)
}

func (m *memory) isSpent(t turn) bool {
	defer m.lock()()
	_, is := m.spent[t]
	return is
}

// see notes whether EC2 showed a node when it was asked at that time, and tells whether it can be believed that there is none:
// it has been asked again after as long as a read may lag.
func (m *memory) see(node string, shown bool, asked time.Time) (gone bool) {
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
	return asked.Sub(a.since) >= lagging
}
