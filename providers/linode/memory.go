package linode

import (
	"sync"
	"time"
)

const (
	// ours is how long the knowledge that a volume is this cluster's serves. It changes by Forget and Adopt only.
	ours = time.Minute
	// leaving is how long a detach that was asked for is believed to be under way while the volume is shown attached. It takes
	// seconds, as a rule; one that takes longer has failed, and can be asked for again.
	leaving = time.Minute
)

// memory is what this process knows by itself.
type memory struct {
	mu    sync.Mutex
	ours  map[int]time.Time
	going map[int]departure
}

// departure is a detach that was asked for.
type departure struct {
	node  string
	since time.Time
	taken bool // by Linode's word; otherwise there was no answer
}

// know notes that a read, or a write, has shown the volume to be ours.
func (m *memory) know(volume int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ours == nil {
		m.ours = make(map[int]time.Time)
	}
	m.ours[volume] = time.Now()
}

func (m *memory) knows(volume int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, known := m.ours[volume]
	return known && time.Since(at) < ours
}

// forget is for a volume that is gone, or not ours any more.
func (m *memory) forget(volume int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ours, volume)
	delete(m.going, volume)
}

// leave notes that a detach of the volume from the node was asked for, and whether Linode has said that it took it.
func (m *memory) leave(volume int, node string, taken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.going == nil {
		m.going = make(map[int]departure)
	}
	m.going[volume] = departure{node, time.Now(), taken}
}

// enter notes that Linode has taken an attach of the volume, so that nothing is left of a detach.
func (m *memory) enter(volume int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.going, volume)
}

// leaves tells whether the volume, which a read asked at that time shows on the node, is on its way from there, and whether it
// may be, since a request was not answered.
func (m *memory) leaves(volume int, node string, asked time.Time) (does, may bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, going := m.going[volume]
	switch {
	case !going:
		return false, false
	case node == d.node && time.Since(d.since) < leaving:
		return d.taken, true
	case asked.After(d.since): // it has arrived
		delete(m.going, volume)
	}
	return false, false
}
