package cloud

import (
	"maps"
	"slices"
	"time"
)

// Bucket is a token bucket: so many calls at once, then so many per second.
type Bucket struct {
	Size      int
	PerSecond float64
}

type bucket struct {
	tokens float64
	filled time.Time
}

// take tells whether a call may go on. The caller holds the lock.
func (c *Cloud) take(call Call) bool {
	if c.cfg.Limits == nil {
		return true
	}
	name := call.Bucket
	limit := Bucket{}
	if name != "" {
		limit = c.cfg.Limits(name)
	}
	if limit == (Bucket{}) {
		name = call.Action
		limit = c.cfg.Limits(name)
	}
	if limit == (Bucket{}) {
		return true
	}
	now := time.Now()
	b, ok := c.buckets[name]
	if !ok {
		b = &bucket{float64(limit.Size), now}
		c.buckets[name] = b
	}
	b.tokens = min(float64(limit.Size), b.tokens+now.Sub(b.filled).Seconds()*limit.PerSecond)
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// Calls returns how many calls arrived, by action, those that were refused or met a fault included.
func (c *Cloud) Calls() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

// Throttled returns how many calls were refused for being too many, by action.
func (c *Cloud) Throttled() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.throttled)
}

// ResetCalls makes Calls and Throttled count anew. Buckets stay as empty as they are.
func (c *Cloud) ResetCalls() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.calls)
	clear(c.throttled)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
