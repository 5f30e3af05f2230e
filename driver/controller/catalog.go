package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/singleflight"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// catalog answers what exists, for calls that must be quick: it asks the cloud once for many callers and remembers the
// answers briefly. Only that a volume exists is remembered, never that it does not: another node may have just made it.
// Work that depends on who holds a volume asks the cloud itself: Controller.Find.
//
// Clouds answer from copies that learn of a change a few seconds later. What this node has itself made or removed it knows
// better than an answer that may be older.
type catalog struct {
	life    context.Context // ends with the controller, and queries that nobody waits for with it
	cloud   cloud
	log     logrus.FieldLogger
	flights singleflight.Group

	mu      sync.Mutex
	entries map[string]remembered
	listed  time.Time // when entries were last the whole list
	changes uint64    // counts what this node did, so that an answer to an older question does not undo it
}

type remembered struct {
	volume *providers.Volume // nil if this node removed it
	at     time.Time

	// When this node itself made, changed or removed it.
	change    uint64 // the count then; 0 for never
	changedAt time.Time
	removed   string // the id of the volume that it removed
}

const (
	// catalogTTL is how long an answer of the cloud is taken for the present.
	catalogTTL = 10 * time.Second
	// FreeTTL is how long an answer that no node holds a volume is good enough to try and attach it: Docker asks for a
	// volume right before it mounts it. The attach itself tells if that has changed.
	FreeTTL = 2 * time.Second
	// shortQuery is the longest that a query lasts for which callers wait that must be quick. Work waits longer for a cloud
	// that refuses to be asked so much.
	shortQuery = 30 * time.Second
)

func newCatalog(life context.Context, c cloud, log logrus.FieldLogger) *catalog {
	return &catalog{life: life, cloud: c, log: log, entries: make(map[string]remembered)}
}

// find returns the volume of that name. Errors: volume.NotFound if the cloud says so; volume.Unsure if it cannot be asked and
// this node has never seen the volume.
func (c *catalog) find(ctx context.Context, name string) (*providers.Volume, error) {
	c.mu.Lock()
	last := c.entries[name]
	c.mu.Unlock()
	if last.volume != nil && time.Since(last.at) < catalogTTL {
		return last.volume, nil
	}
	found, err := c.share(ctx, "find "+name, func(ctx context.Context) (any, error) {
		asked := c.now()
		v, err := c.cloud.find(ctx, name)
		if err != nil && !errors.Is(err, providers.ErrNotFound) {
			return nil, err
		}
		if known, older := c.olderThanOurs(name, v); older {
			if known == nil {
				return nil, providers.ErrNotFound
			}
			return known, nil
		}
		c.learn(asked, name, v)
		return v, err
	})
	switch {
	case err == nil:
		return found.(*providers.Volume), nil
	case errors.Is(err, providers.ErrNotFound):
		return nil, volume.Fail(volume.NotFound, "no such volume", "")
	case last.volume != nil:
		return last.volume, nil
	default:
		return nil, &volume.Error{Code: volume.Unsure, Cause: fmt.Errorf("cannot tell whether the volume exists: %w", err)}
	}
}

// last returns what the cloud last said of the volume, without asking; nil if nothing is remembered.
func (c *catalog) last(name string) *providers.Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[name].volume
}

// free returns the volume if the cloud has just said that no node holds it, nil otherwise. The answer is the caller's own.
func (c *catalog) free(name string) *providers.Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.entries[name]; s.volume != nil && !s.volume.Held() && time.Since(s.at) < FreeTTL {
		return ownCopy(s.volume)
	}
	return nil
}

// list returns all volumes, sorted by name.
func (c *catalog) list(ctx context.Context) ([]*providers.Volume, error) {
	c.mu.Lock()
	recent := time.Since(c.listed) < catalogTTL
	c.mu.Unlock()
	if !recent {
		_, err := c.share(ctx, "list", func(ctx context.Context) (any, error) {
			asked := c.now()
			all, err := c.cloud.list(ctx)
			if err == nil || len(all) > 0 {
				c.replace(asked, all)
			}
			if len(all) > 0 && err != nil {
				c.log.WithError(err).Error("Some volumes cannot be read and are missing from the list")
				err = nil
			}
			return nil, err
		})
		if err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*providers.Volume, 0, len(c.entries))
	for _, s := range c.entries {
		if s.volume != nil {
			all = append(all, s.volume)
		}
	}
	slices.SortFunc(all, func(a, b *providers.Volume) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// share runs ask once for all callers of one key that come while it runs. A caller that leaves does not end it for the
// others.
func (c *catalog) share(ctx context.Context, key string, ask func(context.Context) (any, error)) (any, error) {
	result := c.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(c.life, shortQuery)
		defer cancel()
		return ask(ctx)
	})
	select {
	case r := <-result:
		return r.Val, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *catalog) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes
}

// learn notes the cloud's answer on one name (nil: there is none), unless this node has changed the volume since the
// question was asked.
func (c *catalog) learn(asked uint64, name string, v *providers.Volume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.entries[name]
	switch {
	case s.change > asked:
	case v == nil && !s.ours():
		delete(c.entries, name)
	case v != nil:
		s.volume, s.at = v, time.Now()
		c.entries[name] = s
	}
}

// leaving notes that the cloud is detaching the volume of that id from a node.
func (c *catalog) leaving(name, id, node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.entries[name]
	if s.volume == nil || s.volume.ID != id {
		return
	}
	s.volume = ownCopy(s.volume)
	s.volume.Attachment = providers.Attachment{Node: node, State: providers.Detaching}
	s.at = time.Now().Add(FreeTTL - catalogTTL) // which most clouds end within seconds
	c.entries[name] = s
}

// ours tells whether this node has made, changed or removed the volume so lately that the cloud's answers may be older.
func (s remembered) ours() bool { return time.Since(s.changedAt) < providers.MaxStale }

// changedLately tells whether this node has made or mounted the volume so lately that the cloud's answers may be older.
func (c *catalog) changedLately(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[name].ours()
}

// olderThanOurs tells whether the cloud's answer on one name (nil: there is none) is of a time before this node made or
// removed the volume, and returns what it knows instead.
func (c *catalog) olderThanOurs(name string, v *providers.Volume) (known *providers.Volume, older bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.entries[name]
	switch {
	case !s.ours():
		return nil, false
	case s.volume == nil:
		return nil, v != nil && v.ID == s.removed
	default:
		return s.volume, v == nil || v.ID != s.volume.ID
	}
}

// replace notes the cloud's whole list, except for what this node has changed since it was asked for.
func (c *catalog) replace(asked uint64, all []*providers.Volume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	entries := make(map[string]remembered, len(all))
	for _, v := range all {
		entries[v.Name] = remembered{volume: v, at: now}
	}
	for name, s := range c.entries {
		if s.change > asked || s.ours() {
			entries[name] = s
		}
	}
	c.entries, c.listed = entries, now
}

// put notes what this node has made or changed.
func (c *catalog) put(v *providers.Volume) { c.change(v.Name, v, "") }

// forget notes that this node has removed the volume of that name and id, or found it missing if id is empty.
func (c *catalog) forget(name, id string) { c.change(name, nil, id) }

func (c *catalog) change(name string, v *providers.Volume, removed string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	now := time.Now()
	c.entries[name] = remembered{
		volume: v, at: now, change: c.changes, changedAt: now,
		removed: cmp.Or(removed, c.entries[name].removed), // it may be found missing again
	}
}
