package managed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// Modify enlarges a volume, and returns when the cloud shows the new size. A cloud that can change more has its own Modify.
func (p *Provider[V]) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	size, err := p.size(change.Size)
	if err := errors.Join(err, providers.CheckOnlyGrows(p.cloud.Name, change)); err != nil {
		return nil, err
	}
	var (
		v    *providers.Volume
		held error
	)
	err = p.Change(ctx, id, func() error {
		d, err := p.GetOurs(ctx, id)
		if err == nil && p.cloud.ResizeDetached && size > d.Size/providers.GiB && !d.Resizing {
			if d, err = p.ensureDetached(ctx, d); errors.Is(err, providers.ErrHeld) {
				held = fmt.Errorf("%w: volume %s is attached to %s %s, and its device would keep its size: stop the services that use it, and enlarge it when it is detached",
					providers.ErrBusy, id, p.cloud.Machine, d.Attachment.Node)
				return nil
			}
		}
		switch now := d.Size / providers.GiB; {
		case err != nil:
			return err
		case change.Size != 0 && providers.InGiB(change.Size) < now:
			return p.cloud.Sizes.Shrinks(id, now)
		case size > now && !d.Resizing:
			if err := p.resize(ctx, d, size); err != nil {
				return err
			}
			d.Resizing = true
		}
		if d.Resizing {
			d, err = p.resized(ctx, id, size)
		}
		if err == nil {
			v, err = p.Volume(ctx, d, true)
		}
		return err
	})
	return v, errors.Join(err, held)
}

// resize asks once. A refused request may repeat one that the cloud accepted and whose answer was lost, or another node's. Then
// resized finds out.
func (p *Provider[V]) resize(ctx context.Context, d Disk[V], size int64) error {
	err := p.cloud.Resize(ctx, d, size)
	if !errors.Is(err, providers.ErrInvalid) && !errors.Is(err, providers.ErrBusy) || ctx.Err() != nil {
		return err
	}
	now, lookErr := p.GetOurs(ctx, d.ID)
	switch {
	case lookErr != nil:
		return lookErr
	case now.Resizing || now.Size >= size*providers.GiB:
		return nil
	}
	return err
}

// resized waits until no resize is under way, and returns the volume if it has the size.
func (p *Provider[V]) resized(ctx context.Context, id string, size int64) (Disk[V], error) {
	retry := pause.Backoff{Most: 2 * time.Second}
	for {
		d, err := p.GetOurs(ctx, id)
		switch {
		case err != nil:
			return d, err
		case d.Resizing:
		case d.Size < size*providers.GiB:
			return d, fmt.Errorf("%w: volume %s has %d GiB, after another change than to %d GiB that was under way: ask again", providers.ErrBusy, id, d.Size/providers.GiB, size)
		default:
			return d, nil
		}
		if err := retry.Wait(ctx); err != nil {
			return d, fmt.Errorf("volume %s is still being resized: %w", id, err)
		}
	}
}
