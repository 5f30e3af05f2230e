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
	b, _ := c.fill(call.Bucket)
	if b == nil {
		b, _ = c.fill(call.Action)
	}
	if b == nil {
		return true
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// fill returns a bucket with what it has now, nil if it has no limit. The caller holds the lock.
func (c *Cloud) fill(name string) (*bucket, Bucket) {
	if c.cfg.Limits == nil || name == "" {
		return nil, Bucket{}
	}
	limit := c.cfg.Limits(name)
	if limit == (Bucket{}) {
		return nil, limit
	}
	now := time.Now()
	b, ok := c.buckets[name]
	if !ok {
		b = &bucket{float64(limit.Size), now}
		c.buckets[name] = b
	}
	b.tokens = min(float64(limit.Size), b.tokens+now.Sub(b.filled).Seconds()*limit.PerSecond)
	b.filled = now
	return b, limit
}

// Left tells what a bucket has: how many calls of how many, and when it will be full, by the cloud's clock. It is of no limit if
// most is 0.
func (c *Cloud) Left(bucket string) (left, most int, full time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, limit := c.fill(bucket)
	if b == nil {
		return 0, 0, time.Time{}
	}
	missing := (float64(limit.Size) - b.tokens) / limit.PerSecond
	return int(b.tokens), limit.Size, c.Now().Add(time.Duration(missing * float64(time.Second)))
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
