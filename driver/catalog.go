package driver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/singleflight"

	"github.com/blockvol/blockvol/providers"
)

// catalog answers what exists, for calls that must be quick: it asks the cloud once for many callers and remembers the
// answers briefly. Only that a volume exists is remembered, never that it does not: another node may have just made it.
// Work that depends on who holds a volume asks the provider itself.
type catalog struct {
	life     context.Context // of the driver: ends questions that nobody waits for
	provider providers.Provider
	log      logrus.FieldLogger
	flights  singleflight.Group

	mu      sync.Mutex
	entries map[string]seen
	listed  time.Time // when entries were last the whole list
	changes uint64    // counts what this node did, so that an answer to an older question does not undo it
}

type seen struct {
	volume *providers.Volume // nil if this node removed it
	at     time.Time
	change uint64 // the count when this node itself made, changed or removed it
}

// fresh is how long an answer of the cloud is taken for the present.
const fresh = 10 * time.Second

func newCatalog(life context.Context, p providers.Provider, log logrus.FieldLogger) *catalog {
	return &catalog{life: life, provider: p, log: log, entries: make(map[string]seen)}
}

// find returns the volume of that name. Errors: ErrNotFound if the cloud says so; ErrUnsure if it cannot be asked and this
// node has never seen the volume.
func (c *catalog) find(ctx context.Context, name string) (*providers.Volume, error) {
	c.mu.Lock()
	last := c.entries[name]
	c.mu.Unlock()
	if last.volume != nil && time.Since(last.at) < fresh {
		return last.volume, nil
	}
	found, err := c.share(ctx, "find "+name, func(ctx context.Context) (any, error) {
		asked := c.now()
		v, err := c.provider.Find(ctx, name)
		if err == nil || errors.Is(err, providers.ErrNotFound) {
			c.learn(asked, name, v)
		}
		return v, err
	})
	switch {
	case err == nil:
		return found.(*providers.Volume), nil
	case errors.Is(err, providers.ErrNotFound):
		return nil, ErrNotFound
	case last.volume != nil:
		return last.volume, nil
	default:
		return nil, errors.Join(ErrUnsure, err)
	}
}

// last returns what the cloud last said of the volume, without asking; nil if nothing is remembered.
func (c *catalog) last(name string) *providers.Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[name].volume
}

// list returns all volumes, sorted by name.
func (c *catalog) list(ctx context.Context) ([]*providers.Volume, error) {
	c.mu.Lock()
	recent := !c.listed.IsZero() && time.Since(c.listed) < fresh
	c.mu.Unlock()
	if !recent {
		_, err := c.share(ctx, "list", func(ctx context.Context) (any, error) {
			asked := c.now()
			all, err := c.provider.List(ctx)
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
		return ask(c.life) // bounded by timely
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

// learn takes in the cloud's answer on one name (nil: there is none), unless this node has changed the volume since the
// question was asked.
func (c *catalog) learn(asked uint64, name string, v *providers.Volume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.entries[name].change > asked:
	case v == nil:
		delete(c.entries, name)
	default:
		c.entries[name] = seen{volume: v, at: time.Now()}
	}
}

// replace takes in the cloud's whole list, but for what this node has changed since it was asked for.
func (c *catalog) replace(asked uint64, all []*providers.Volume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	entries := make(map[string]seen, len(all))
	for _, v := range all {
		entries[v.Name] = seen{volume: v, at: now}
	}
	for name, s := range c.entries {
		if s.change > asked {
			entries[name] = s
		}
	}
	c.entries, c.listed = entries, now
}

// put takes in what this node has made or changed.
func (c *catalog) put(v *providers.Volume) { c.change(v.Name, v) }

// forget takes in that this node has removed a volume.
func (c *catalog) forget(name string) { c.change(name, nil) }

func (c *catalog) change(name string, v *providers.Volume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	c.entries[name] = seen{volume: v, at: time.Now(), change: c.changes}
}
