package aws

import (
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// lagging is how long a read of EC2 may not show what was written. AWS names no bound; what it describes are seconds.
const lagging = 10 * time.Second

// memory is what this process has written lately, for as long as a read may not show it, and what it knows for good.
type memory struct {
	mu      sync.Mutex
	made    map[string]made               // by name: volumes made or adopted
	hidden  map[volumeName]time.Time      // deleted or forgotten, and when
	entries map[string]map[string]writing // by id and key: entries of records
	sizes   map[string]resizing           // by id: modified
	left    map[string]time.Time          // by id: when this instance's hold on the volume was asked to end
	ours    map[string]time.Time          // by id: when a volume was last known to be this cluster's
	turns   map[string]int                // by name: the next turn of its ClientToken, see create
}

// volumeName is a volume under one of the names that it has in its life.
type volumeName struct{ id, name string }

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

func recent(at time.Time) bool { return time.Since(at) < lagging }

// tidy forgets what EC2 shows by now.
func (m *memory) tidy() {
	if m.made == nil {
		m.made, m.hidden, m.entries = make(map[string]made), make(map[volumeName]time.Time), make(map[string]map[string]writing)
		m.sizes, m.left, m.ours, m.turns = make(map[string]resizing), make(map[string]time.Time), make(map[string]time.Time), make(map[string]int)
	}
	maps.DeleteFunc(m.made, func(_ string, v made) bool { return !recent(v.at) })
	maps.DeleteFunc(m.hidden, func(_ volumeName, at time.Time) bool { return !recent(at) })
	maps.DeleteFunc(m.sizes, func(_ string, r resizing) bool { return !recent(r.at) })
	maps.DeleteFunc(m.left, func(_ string, at time.Time) bool { return !recent(at) })
	maps.DeleteFunc(m.entries, func(_ string, written map[string]writing) bool {
		maps.DeleteFunc(written, func(_ string, w writing) bool { return !recent(w.at) })
		return len(written) == 0
	})
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
	m.ours[id] = time.Now()
	delete(m.hidden, volumeName{id, name})
}

// makes returns the id of a volume of that name which this process has made so lately that a read may not show it.
func (m *memory) makes(name string) (id string, since time.Time) {
	defer m.lock()()
	return m.made[name].id, m.made[name].at
}

// names returns the names that makes knows.
func (m *memory) names() map[string]string {
	defer m.lock()()
	names := make(map[string]string, len(m.made))
	for name, v := range m.made {
		names[name] = v.id
	}
	return names
}

// hide notes that the volume is no longer ours under that name: it was deleted or forgotten here.
func (m *memory) hide(id, name string) {
	defer m.lock()()
	m.hidden[volumeName{id, name}] = time.Now()
	delete(m.ours, id)
	delete(m.entries, id)
	maps.DeleteFunc(m.made, func(_ string, v made) bool { return v.id == id })
}

func (m *memory) hides(id, name string) bool {
	defer m.lock()()
	_, is := m.hidden[volumeName{id, name}]
	return is
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

// leave notes that EC2 has taken a detach of the volume from this instance.
func (m *memory) leave(id string) {
	defer m.lock()()
	m.left[id] = time.Now()
}

// take notes that EC2 has taken an attach of the volume to this instance.
func (m *memory) take(id string) {
	defer m.lock()()
	delete(m.left, id)
}

// leaves tells whether the volume was detached from this instance so lately that a read may still show it attached.
func (m *memory) leaves(id string) bool {
	defer m.lock()()
	_, is := m.left[id]
	return is
}

// complete adds to a read what this process has written since. An entry that has another value is another node's, later.
func (m *memory) complete(v *providers.Volume) {
	defer m.lock()()
	m.ours[v.ID] = time.Now()
	for key, w := range m.entries[v.ID] {
		if _, shown := v.Record[key]; !shown {
			v.Record[key] = w.value
		}
	}
	v.Size = max(v.Size, m.sizes[v.ID].bytes)
}

// knows tells whether the volume was this cluster's at some time within age.
func (m *memory) knows(id string, age time.Duration) bool {
	defer m.lock()()
	at, known := m.ours[id]
	return known && time.Since(at) < age
}

// turn returns the first turn of the name's ClientToken that may still make a volume.
func (m *memory) turn(name string) int {
	defer m.lock()()
	return m.turns[name]
}

// spend notes that a turn of the name's ClientToken makes no volume any more.
func (m *memory) spend(name string, turn int) {
	defer m.lock()()
	m.turns[name] = max(m.turns[name], turn+1)
}
