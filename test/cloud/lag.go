package cloud

import "time"

// A history is what an object is and was, as far back as a read may look. Its values are never changed in place.
type history[T any] struct{ versions []version[T] } // oldest first

type version[T any] struct {
	from  time.Time
	value T
	gone  bool
}

// put makes a new state the truth and forgets those that no read shows any more.
func (h *history[T]) put(value T, gone bool, lag time.Duration) {
	now := time.Now()
	h.versions = append(h.versions, version[T]{now, value, gone})
	for len(h.versions) > 1 && h.versions[1].from.Before(now.Add(-lag)) {
		h.versions = h.versions[1:]
	}
}

// now returns the truth, and whether the object exists.
func (h *history[T]) now() (T, bool) {
	if h == nil {
		var none T
		return none, false
	}
	last := h.versions[len(h.versions)-1]
	return last.value, !last.gone
}

// at returns the object as it was, and whether it existed.
func (h *history[T]) at(when time.Time) (T, bool) {
	for i := len(h.versions) - 1; i >= 0; i-- {
		if !h.versions[i].from.After(when) {
			return h.versions[i].value, !h.versions[i].gone
		}
	}
	var none T
	return none, false
}

// seen returns objects as one read shows them: each as it was a random while ago.
func seen[T any](c *Cloud, objects map[string]*history[T]) map[string]*history[T] {
	if c.cfg.Lag <= 0 {
		return objects
	}
	shown := make(map[string]*history[T], len(objects))
	now := time.Now()
	for _, id := range sortedKeys(objects) { // so that a seed always means the same
		ago := time.Duration(c.rand.Int64N(int64(c.cfg.Lag) + 1))
		if value, ok := objects[id].at(now.Add(-ago)); ok {
			shown[id] = &history[T]{[]version[T]{{value: value}}}
		}
	}
	return shown
}
