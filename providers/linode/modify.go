package linode

import (
	"context"
	"errors"
	"fmt"
	"time"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

// Modify enlarges a volume that nobody holds, and returns once Linode calls it active. Linode would take a volume in use as well,
// but the device of an attached volume keeps its size until it is attached anew, so that is refused here.
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	n, err := numberOf(id)
	if err != nil {
		return nil, err
	}
	least, err := sizes.Of(change.Size)
	if err := errors.Join(err, providers.CheckOnlyGrows("Linode", change)); err != nil {
		return nil, err
	}
	gibs := int(least)
	v, asked, err := p.getOurs(ctx, n)
	switch {
	case err != nil:
		return nil, err
	case change.Size != 0 && (change.Size+gib-1)/gib < int64(v.Size):
		return nil, sizes.Shrinks(id, int64(v.Size))
	case gibs > v.Size && v.Status == sdk.VolumeActive:
		if held := p.attachmentOf(v, asked); held.State != providers.Detached {
			return nil, fmt.Errorf("%w: volume %s is attached to Linode %s, and its device would keep its size: stop the services that use it, and enlarge it when it is detached", providers.ErrBusy, id, held.Node)
		}
		if err := p.resize(ctx, n, gibs); err != nil {
			return nil, err
		}
	case gibs > v.Size && v.Status != sdk.VolumeResizing:
		return nil, fmt.Errorf("%w: Linode calls volume %s %q", providers.ErrBusy, id, p.rest.Clean(string(v.Status)))
	}
	return p.resized(ctx, n, gibs)
}

// resize asks Linode once. What it refuses may be the echo of a request that it took and whose answer was lost: resized finds out.
func (p *Provider) resize(ctx context.Context, id, gibs int) error {
	err := p.do(ctx, fmt.Sprintf("the request to resize volume %d", id), func(ctx context.Context) error { return p.api.ResizeVolume(ctx, id, gibs) })
	if !errors.Is(err, providers.ErrInvalid) && !errors.Is(err, providers.ErrBusy) || ctx.Err() != nil {
		return err
	}
	v, _, lookErr := p.getOurs(ctx, id)
	switch {
	case lookErr != nil:
		return lookErr
	case v.Status == sdk.VolumeResizing || v.Size >= gibs:
		return nil
	}
	return err
}

// resized waits until Linode shows the volume at rest, with so many GiB.
func (p *Provider) resized(ctx context.Context, id, gibs int) (*providers.Volume, error) {
	retry := pace.Backoff{Most: 2 * time.Second}
	for {
		v, asked, err := p.getOurs(ctx, id)
		switch {
		case err != nil:
			return nil, err
		case v.Status == sdk.VolumeResizing:
		case v.Size < gibs:
			return nil, fmt.Errorf("%w: volume %d has %d GiB, after another change than to %d GiB that was under way: ask again", providers.ErrBusy, id, v.Size, gibs)
		default:
			return p.describe(v, asked)
		}
		if err := retry.Wait(ctx); err != nil {
			return nil, fmt.Errorf("volume %d is still being resized: %w", id, err)
		}
	}
}
