package hetzner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

// sizes are those of the API reference ("Create a Volume"), which calls them GB.
var sizes = providers.Sizes{Cloud: "Hetzner Cloud", Least: 10, Most: 10240}

// Create returns the volume once Hetzner calls it available. Of nodes that make one name at once, Hetzner lets one have it.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	size, err := sizes.Of(spec.Size)
	err = errors.Join(err, providers.CheckOptions("Hetzner Cloud", spec, p.Supports()))
	if err := errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record), checkTags(spec.Tags), err); err != nil {
		return nil, err
	}
	v, err := p.find(ctx, spec.Name)
	if errors.Is(err, providers.ErrNotFound) {
		v, err = p.make(ctx, spec, int(max(sizes.Least, size)))
	}
	if errors.Is(err, errTaken) { // perhaps by the request itself, whose answer was lost
		refusal := err
		if v, err = p.find(ctx, spec.Name); errors.Is(err, providers.ErrNotFound) {
			err = p.whoseName(ctx, spec.Name, refusal)
		}
	}
	if err != nil {
		return nil, err
	}
	retry := pace.Backoff{Most: 2 * time.Second}
	for v.Status == volumeCreating {
		if err := retry.Wait(ctx); err != nil {
			return nil, fmt.Errorf("volume %d is still being created: %w", v.ID, err)
		}
		if v, err = p.getOurs(ctx, text(v.ID)); err != nil {
			return nil, err
		}
	}
	return p.describe(ctx, v, true)
}

// make asks for a volume with all its labels, and waits for it.
func (p *Provider) make(ctx context.Context, spec providers.Spec, size int) (*volume, error) {
	zone := spec.Zone
	if zone == "" {
		node, err := p.Node(ctx)
		if err != nil {
			return nil, err
		}
		zone = node.Zone
	}
	request, asked := fmt.Sprintf("the request to create volume %q in location %s", spec.Name, zone), time.Now()
	marks := p.marks(nil, spec)
	made, err := p.api.create(ctx, schema.VolumeCreateRequest{
		Name: p.nameOf(spec.Name), Size: size, Location: &schema.IDOrName{Name: zone}, Labels: &marks,
	})
	switch {
	case err != nil:
		err = p.explain(ctx, request, err)
		if errors.Is(err, providers.ErrNotFound) { // there is nothing else that it could be about
			return nil, fmt.Errorf("%w: there is no such location: %s", providers.ErrInvalid, err.Error())
		}
		return nil, err
	case made.Volume.ID == 0:
		return nil, p.notItsOwn(ctx, request)
	}
	if made.Action != nil {
		if err := p.await(ctx, fmt.Sprintf("create volume %d", made.Volume.ID), made.Action); err != nil {
			return nil, err
		}
		made.Volume.Status = volumeAvailable
	}
	p.saw(&made.Volume, asked)
	return &made.Volume, nil
}

// await waits for the end of an action, which may be over when its beginning is told.
func (p *Provider) await(ctx context.Context, change string, a *schema.Action) error {
	retry := pace.Backoff{Most: 2 * time.Second}
	for id, asked := a.ID, false; ; asked = true {
		switch a.Status {
		case actionSuccess:
			return nil
		case actionError:
			return p.failed(change, a)
		case actionRunning:
		default:
			return p.notItsOwn(ctx, "the request to "+change)
		}
		if asked {
			if err := retry.Wait(ctx); err != nil {
				return fmt.Errorf("it is not finished to %s: %w", change, err)
			}
		}
		var err error
		if a, err = p.action(ctx, id); err != nil {
			return err
		}
	}
}

// action asks what has become of an action.
func (p *Provider) action(ctx context.Context, id int64) (*schema.Action, error) {
	request := fmt.Sprintf("the question for action %d", id)
	a, err := p.api.action(ctx, id)
	switch {
	case err != nil:
		return nil, p.explain(ctx, request, err)
	case a == nil: // it is kept for long, but not for ever
		return &schema.Action{ID: id, Status: actionSuccess}, nil
	case a.ID != id:
		return nil, p.notItsOwn(ctx, request)
	}
	return a, nil
}

// Modify enlarges the volume, in use or not, and returns when it has its size.
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	gibs, err := sizes.Of(change.Size)
	if err := errors.Join(err, providers.CheckOnlyGrows("Hetzner Cloud", change)); err != nil {
		return nil, err
	}
	var v *volume
	err = p.changing(ctx, id, func(ctx context.Context) error {
		if v, err = p.getOurs(ctx, id); err != nil {
			return err
		}
		size := int(gibs)
		switch {
		case size == 0, size == v.Size:
			return nil
		case size < v.Size:
			return sizes.Shrinks(id, int64(v.Size))
		}
		a, err := p.api.resize(ctx, v.ID, size)
		if err != nil {
			err = p.explain(ctx, "the request to enlarge volume "+id, err)
			if !errors.Is(err, providers.ErrInvalid) {
				return err
			}
			// Perhaps it has that size by a request whose answer was lost, or by another node's.
			if now, look := p.getOurs(ctx, id); look == nil && now.Size == size {
				v, err = now, nil
			}
			return err
		}
		if err := p.await(ctx, "enlarge volume "+id, a); err != nil {
			return err
		}
		v, err = p.getOurs(ctx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return p.describe(ctx, v, true)
}
