package cloud

import (
	"maps"
	"time"
)

// Bucket is a token bucket: its size in calls and its refill rate in calls per second.
type Bucket struct {
	Size      int
	PerSecond float64
}

type bucket struct {
	tokens float64
	filled time.Time
}

// take reports whether a call is within the limits. The caller holds the lock.
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

// fill returns the refilled bucket, or nil if there is no limit. The caller holds the lock.
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

// Left returns the calls left in a bucket, its size, and when it will be full by the cloud's clock. There is no limit if most
// is 0.
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

// Calls returns the number of calls by action, including refused and failed ones.
func (c *Cloud) Calls() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

// Throttled returns the number of calls refused by the rate limit, by action.
func (c *Cloud) Throttled() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.throttled)
}

// ResetCalls resets Calls and Throttled. Buckets are not refilled.
func (c *Cloud) ResetCalls() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.calls)
	clear(c.throttled)
}
