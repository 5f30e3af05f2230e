package peer

import "time"

// Started notes that a node is being started, so that its silence is not taken for a failure for a while.
func (m *Members) Started(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[node]; n != nil {
		n.own.left = time.Now()
	}
}
