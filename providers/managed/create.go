package managed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// Create returns the volume of that name as soon as it can be attached. If there is none, it is made.
func (p *Provider[V]) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	gib, wrong := p.size(spec.Size)
	if err := errors.Join(p.Check(spec), providers.CheckOptions(p.cloud.Name, spec, p.cloud.Options), wrong); err != nil {
		return nil, err
	}
	var d Disk[V]
	var err error
	absent, known := p.absent.Get(p.cloud.AbsentFor, spec.Name)
	if !known || !absent {
		d, err = p.Lookup(ctx, spec.Name)
		absent = errors.Is(err, providers.ErrNotFound)
	}
	if absent {
		d, err = p.make(ctx, spec, gib)
	}
	if err == nil {
		d, err = p.await(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	p.named(spec.Name, d.ID)
	return p.Volume(ctx, d, true)
}

// named notes that the volume has the name from now on.
func (p *Provider[V]) named(name, id string) {
	p.absent.Put(name, time.Now(), false)
	p.memory.create(name, id)
}

// Check returns ErrInvalid if name, Record or tags of spec are not accepted.
func (p *Provider[V]) Check(spec providers.Spec) error {
	return errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record), p.cloud.CheckSpec(spec))
}

func (p *Provider[V]) size(bytes int64) (gib int64, err error) {
	if p.cloud.Sizes.Most == 0 {
		return 0, nil
	}
	return p.cloud.Sizes.Of(bytes)
}

// make creates the volume, or returns the one that another node has created meanwhile.
func (p *Provider[V]) make(ctx context.Context, spec providers.Spec, gib int64) (Disk[V], error) {
	for turn := 0; ; turn++ {
		asked := time.Now()
		v, err := p.cloud.Create(ctx, spec, gib, turn)
		if err == nil {
			return p.show(v, asked), nil
		}
		if !errors.Is(err, ErrTaken) {
			return Disk[V]{}, err
		}
		d, lookErr := p.Lookup(ctx, spec.Name)
		switch {
		case !errors.Is(lookErr, providers.ErrNotFound):
			return d, lookErr
		case turn+1 >= p.cloud.Turns:
			return d, p.cloud.Taken(ctx, spec.Name, err)
		}
	}
}

// await waits until a volume can be attached.
func (p *Provider[V]) await(ctx context.Context, d Disk[V]) (Disk[V], error) {
	if d.Creating && p.cloud.Await != nil {
		asked := time.Now()
		v, err := p.cloud.Await(ctx, d)
		if err != nil {
			return d, err
		}
		return p.show(v, asked), nil
	}
	retry := pause.Backoff{Most: 2 * time.Second}
	for id, begin := d.ID, time.Now(); d.Creating; {
		if err := retry.Wait(ctx); err != nil {
			return d, fmt.Errorf("volume %s is still being created: %w", id, err)
		}
		now, err := p.GetOurs(ctx, id)
		switch {
		case errors.Is(err, providers.ErrNotFound) && time.Since(begin) < providers.MaxStale:
		case errors.Is(err, providers.ErrNotFound):
			return d, fmt.Errorf("%w: volume %s was created and is gone at the same moment", providers.ErrBusy, id)
		case err != nil:
			return d, err
		default:
			d = now
		}
	}
	return d, d.Damaged
}

// untilFree repeats a call while it returns providers.ErrBusy.
func untilFree(ctx context.Context, call func() error) error {
	retry := pause.Backoff{Most: 4 * time.Second}
	for {
		err := call()
		if !errors.Is(err, providers.ErrBusy) {
			return err
		}
		if over := retry.Wait(ctx); over != nil {
			return fmt.Errorf("%w: %w", err, over)
		}
	}
}
