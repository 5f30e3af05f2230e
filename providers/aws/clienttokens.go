package aws

import (
	"maps"
	"sync"
	"time"
)

// memory is what this process knows of ClientTokens.
type memory struct {
	mu    sync.Mutex
	spent map[turn]time.Time // turns of ClientTokens that create no volume, and until when that is certain
}

// turn is one of the ClientTokens of a name, see Provider.tokenOf.
type turn struct {
	name string
	n    int
}

func (m *memory) lock() (unlock func()) {
	m.mu.Lock()
	if m.spent == nil {
		m.spent = make(map[turn]time.Time)
	}
	maps.DeleteFunc(m.spent, func(_ turn, until time.Time) bool { return time.Now().After(until) })
	return m.mu.Unlock
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
