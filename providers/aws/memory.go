package aws

import (
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers/managed"
)

// memory is what this process knows of ClientTokens, and of what this instance has given up lately.
type memory struct {
	mu    sync.Mutex
	spent map[turn]time.Time   // turns of ClientTokens that create no volume, and until when that is certain
	freed map[string]time.Time // by id: when this instance gave it up
}

// turn is one of the ClientTokens of a name, see Provider.tokenOf.
type turn struct {
	name string
	n    int
}

func (m *memory) lock() (unlock func()) {
	m.mu.Lock()
	if m.spent == nil {
		m.spent, m.freed = make(map[turn]time.Time), make(map[string]time.Time)
	}
	maps.DeleteFunc(m.spent, func(_ turn, until time.Time) bool { return time.Now().After(until) })
	maps.DeleteFunc(m.freed, func(_ string, at time.Time) bool { return time.Since(at) >= managed.Lag })
	return m.mu.Unlock
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
	_, is := m.freed[id]
	return is
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
