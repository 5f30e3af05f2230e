package cloud

import (
	"hash/crc64"
	"math/rand/v2"
	"slices"
	"time"
)

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

// seen returns the view of one read: each object as it was at a random time within Lag. The caller holds the lock.
func seen[T any](c *Cloud) func(id string, of *history[T]) (T, bool) {
	if c.cfg.Lag <= 0 {
		return current[T]
	}
	now, salt := time.Now(), c.rand.Uint64()
	return func(id string, of *history[T]) (T, bool) {
		if of.versions[len(of.versions)-1].from.Before(now.Add(-c.cfg.Lag)) {
			return of.now()
		}
		// By the ID, so that a seed gives the same result in any order of reading.
		ago := rand.New(rand.NewPCG(salt, crc64.Checksum([]byte(id), polynomial))).Int64N(int64(c.cfg.Lag) + 1)
		return of.at(now.Add(-time.Duration(ago)))
	}
}

var polynomial = crc64.MakeTable(crc64.ECMA)

// current is the view of the current state.
func current[T any](_ string, of *history[T]) (T, bool) { return of.now() }

// list returns copies of the existing objects that match; nil matches all. Others are not copied, so reading a few of thousands
// is cheap. The caller holds the lock.
func list[T interface{ clone() T }](objects map[string]*history[T], view func(string, *history[T]) (T, bool), match func(T) bool, order func(a, b T) int) []T {
	all := []T{}
	for id, object := range objects {
		if value, exists := view(id, object); exists && (match == nil || match(value)) {
			all = append(all, value.clone())
		}
	}
	slices.SortFunc(all, order)
	return all
}
