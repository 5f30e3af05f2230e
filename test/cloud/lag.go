package cloud

import "time"

// history has the versions of an object that a read may show. Its values are never changed in place.
type history[T any] struct{ versions []version[T] } // oldest first

type version[T any] struct {
	from  time.Time
	value T
	gone  bool
}

// put adds the current version and drops versions that no read can show any more.
func (h *history[T]) put(value T, gone bool, lag time.Duration) {
	now := time.Now()
	h.versions = append(h.versions, version[T]{now, value, gone})
	for len(h.versions) > 1 && h.versions[1].from.Before(now.Add(-lag)) {
		h.versions = h.versions[1:]
	}
}

// now returns the current version and whether the object exists.
func (h *history[T]) now() (T, bool) {
	if h == nil {
		var none T
		return none, false
	}
	last := h.versions[len(h.versions)-1]
	return last.value, !last.gone
}

// at returns the version at a time and whether the object existed.
func (h *history[T]) at(when time.Time) (T, bool) {
	for i := len(h.versions) - 1; i >= 0; i-- {
		if !h.versions[i].from.After(when) {
			return h.versions[i].value, !h.versions[i].gone
		}
	}
	var none T
	return none, false
}

// seen returns objects as one read shows them: each at a random time within Lag.
func seen[T any](c *Cloud, objects map[string]*history[T]) map[string]*history[T] {
	if c.cfg.Lag <= 0 {
		return objects
	}
	shown := make(map[string]*history[T], len(objects))
	now := time.Now()
	for _, id := range sortedKeys(objects) { // in a fixed order, so that a seed gives the same result
		ago := time.Duration(c.rand.Int64N(int64(c.cfg.Lag) + 1))
		if value, ok := objects[id].at(now.Add(-ago)); ok {
			shown[id] = &history[T]{[]version[T]{{value: value}}}
		}
	}
	return shown
}
