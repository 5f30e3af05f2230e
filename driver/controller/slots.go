package controller

import (
	"context"
	"sync"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// slots are the last answer about the node's places for disks.
type slots struct {
	mu   sync.Mutex
	last providers.Slots
	at   time.Time
}

// forget has the cloud asked anew: a disk of this node has come or gone.
func (s *slots) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = time.Time{}
}

// Slots counts the places for disks of this node, as they were up to catalogTTL ago if blockvol has attached or detached none since.
// Errors: volume.Invalid if the provider does not know.
func (c *Controller) Slots(ctx context.Context) (providers.Slots, error) {
	counter, can := c.cloud.provider.(providers.SlotCounter)
	if !can {
		return providers.Slots{}, volume.Fail(volume.Invalid, "this provider does not know how many disks a node can have", "")
	}
	c.slots.mu.Lock()
	last, recent := c.slots.last, time.Since(c.slots.at) < catalogTTL
	c.slots.mu.Unlock()
	if recent {
		return last, nil
	}
	answer, err := c.catalog.share(ctx, "slots", func(ctx context.Context) (any, error) {
		counted, err := counter.Slots(ctx)
		if err == nil {
			c.slots.mu.Lock()
			c.slots.last, c.slots.at = counted, time.Now()
			c.slots.mu.Unlock()
		}
		return counted, err
	})
	if err != nil {
		return providers.Slots{}, err
	}
	return answer.(providers.Slots), nil //nolint:forcetypeassert // of the function above
}
