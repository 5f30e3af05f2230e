package managed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/recent"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Adopt makes an existing disk a volume of this cluster.
func (p *Provider[V]) Adopt(ctx context.Context, id string, spec providers.Spec) (v *providers.Volume, err error) {
	if err := p.Check(spec); err != nil {
		return nil, err
	}
	err = p.Change(ctx, id, func() error {
		d, err := p.adopt(ctx, id, spec)
		if err == nil {
			v, err = p.Volume(ctx, d, true)
		}
		return err
	})
	return v, err
}

func (p *Provider[V]) adopt(ctx context.Context, id string, spec providers.Spec) (Disk[V], error) {
	d, err := p.Get(ctx, id)
	if err == nil {
		d, err = p.settle(ctx, d, askLater)
	}
	if err != nil {
		return d, err
	}
	refuse := func(format string, args ...any) (Disk[V], error) {
		return d, fmt.Errorf("%w: volume %s %s", providers.ErrInvalid, id, fmt.Sprintf(format, args...))
	}
	again := p.IsOurs(d) && d.Name == spec.Name
	switch {
	case d.Damaged != nil && !errors.Is(d.Damaged, ErrUnmarked):
		return d, fmt.Errorf("%w: %w", providers.ErrInvalid, d.Damaged)
	case again:
	case d.Marked:
		return refuse("is volume %q of cluster %q already: remove it there with reclaim=retain first", d.Name, d.Cluster)
	case d.Held():
		return refuse("is attached to %s %s: detach it first", p.cloud.Machine, d.Attachment.Node)
	case d.Unready != "":
		return refuse("is %q in the words of %s: it can be adopted when it is available", sanitize.Clip(d.Unready), p.cloud.Name)
	}
	if err := p.nameIsFree(ctx, id, spec.Name); err != nil {
		return d, err
	}
	asked, was := time.Now(), d.Former
	v, err := p.cloud.Claim(ctx, d, spec)
	if err != nil {
		return d, err
	}
	p.named(spec.Name, id)
	for key, value := range spec.Record {
		p.memory.mark(id, key, value)
	}
	d = p.show(v, asked)
	if p.cloud.Rivals == nil {
		return d, nil
	}
	// Another node may have given this name to another disk at the same moment. Then this call undoes its own.
	if err := p.nameIsFree(ctx, id, spec.Name); err != nil {
		d.Former = was
		if left := p.release(ctx, d); left != nil {
			return d, errors.Join(err, fmt.Errorf("and what was done cannot be undone: take %s from volume %s: %w", p.cloud.Unname, id, left))
		}
		return d, err
	}
	return d, nil
}

// nameIsFree returns an error if another volume than that has the name.
func (p *Provider[V]) nameIsFree(ctx context.Context, id, name string) error {
	other, err := p.rival(ctx, id, name)
	switch {
	case errors.Is(err, providers.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: volume %s cannot be %q: that is the name of volume %s", providers.ErrInvalid, id, name, other.ID)
}

// rival returns another volume of the name than the one with that id.
func (p *Provider[V]) rival(ctx context.Context, id, name string) (Disk[V], error) {
	var all []Disk[V]
	if p.cloud.Rivals == nil {
		d, err := p.Lookup(ctx, name)
		if err != nil {
			return d, err
		}
		all = append(all, d)
	} else {
		asked := time.Now()
		found, err := p.cloud.Rivals(ctx, name)
		if err != nil {
			return Disk[V]{}, err
		}
		for _, v := range found {
			all = append(all, p.show(v, asked))
		}
	}
	var others []Disk[V]
	for _, d := range all {
		if d.ID != id {
			others = append(others, d)
		}
	}
	return p.One(name, others)
}

// Forget takes cluster and name from a volume that no node holds.
func (p *Provider[V]) Forget(ctx context.Context, id string) error {
	return p.Change(ctx, id, func() error {
		d, err := p.Get(ctx, id)
		switch {
		case err != nil:
			return err
		case errors.Is(d.Damaged, ErrUnmarked):
			return d.Damaged
		case !d.Marked:
			return nil
		case !p.IsOurs(d):
			return providers.NotOurs(id)
		}
		if d, err = p.ensureDetached(ctx, d); err != nil {
			return err
		}
		d.Former = Former{d.Cluster, d.Name}
		return p.release(ctx, d)
	})
}

func (p *Provider[V]) release(ctx context.Context, d Disk[V]) error {
	err := p.cloud.Release(ctx, d)
	if err == nil {
		p.memory.hide(lifeOf(d), remembered)
		p.gone(d.ID, time.Now(), providers.ErrNotFound)
	}
	return err
}

// ensureDetached returns an error if a node holds the volume. The disk it returns may be of a later answer.
func (p *Provider[V]) ensureDetached(ctx context.Context, d Disk[V]) (Disk[V], error) {
	d, err := p.settle(ctx, d, askLater)
	switch {
	case err != nil:
		return d, err
	case d.Held() && !d.nothingLeft:
		return d, &providers.HeldError{Volume: d.ID, Node: d.Attachment.Node}
	case !p.IsOurs(d): // any more
		return d, providers.NotOurs(d.ID)
	}
	return d, nil
}

// Delete destroys a volume that no node holds. The cloud itself refuses one that is attached.
func (p *Provider[V]) Delete(ctx context.Context, id string) error {
	if !p.cloud.IsID(id) {
		return ctx.Err()
	}
	err := p.Change(ctx, id, func() error {
		d, err := p.GetOurs(ctx, id)
		if err == nil {
			d, err = p.ensureDetached(ctx, d)
		}
		if err != nil {
			return err
		}
		err = p.cloud.Delete(ctx, d)
		switch {
		case errors.Is(err, ErrAttached):
			return p.heldError(ctx, id, err)
		case err == nil, errors.Is(err, providers.ErrNotFound):
			p.memory.hide(lifeOf(d), remembered)
			p.Lose(id)
		}
		return err
	})
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	}
	return err
}

// heldError returns the refusal with the name of the holder. If no answer shows one, an attach or detach may be under way: if the
// cloud locks volumes, the error is providers.ErrBusy, so that Change asks again.
func (p *Provider[V]) heldError(ctx context.Context, id string, refusal error) error {
	d, err := p.Get(ctx, id)
	if err == nil {
		d, err = p.settle(ctx, d, askLater)
	}
	switch {
	case errors.Is(err, providers.ErrNotFound):
		return err
	case err != nil || !d.Held() && !p.cloud.Locks:
		return &providers.HeldError{Volume: id}
	}
	return d.Attachment.Refused(id, "", refusal)
}

// Mark writes one entry of the Record, beside the others.
func (p *Provider[V]) Mark(ctx context.Context, id, key, value string) error {
	record := providers.Record{key: value}
	if err := errors.Join(providers.CheckRecord(record), p.cloud.CheckSpec(providers.Spec{Record: record})); err != nil {
		return err
	}
	if p.cloud.MarksAlone {
		if err := p.EnsureOurs(ctx, id, recent.WhileFree); err != nil {
			return err
		}
		err := p.cloud.Mark(ctx, Disk[V]{Volume: providers.Volume{ID: id}}, key, value)
		if err == nil {
			p.memory.mark(id, key, value)
		}
		return err
	}
	return p.Change(ctx, id, func() error {
		d, err := p.GetOurs(ctx, id)
		if err != nil {
			return err
		}
		if now, marked := d.Record[key]; marked && now == value {
			return nil
		}
		return p.cloud.Mark(ctx, d, key, value)
	})
}
