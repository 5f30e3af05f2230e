package openstack

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/quote"
)

// Modify makes volumes larger, also while they are in use, if the cloud can. A volume's type is for life here: changing it may
// move the data for hours.
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	v, err := p.getOurs(ctx, id)
	if err != nil {
		return nil, err
	}
	gibs, err := sizes.Of(change.Size)
	switch {
	case err != nil:
		return nil, err
	case change.IOPS != 0 || change.Throughput != 0:
		return nil, fmt.Errorf("%w: IOPS and throughput are matters of Cinder's volume types", providers.ErrInvalid)
	case change.Type != "" && change.Type != v.VolumeType:
		return nil, fmt.Errorf("%w: volume %s is of type %q, and stays so: make a new volume and copy", providers.ErrInvalid, id, quote.Clip(v.VolumeType))
	case gibs == 0:
		return p.describe(ctx, v)
	}
	retry := pace.Backoff{Most: 2 * time.Second}
	for asked := false; ; {
		switch {
		case v.Status == "extending":
			if err := retry.Wait(ctx); err != nil {
				return nil, fmt.Errorf("volume %s is still being extended: %w", id, err)
			}
		case int64(v.Size) == gibs || asked && int64(v.Size) > gibs:
			return p.describe(ctx, v)
		case int64(v.Size) > gibs:
			return nil, sizes.Shrinks(id, int64(v.Size))
		case v.Status == "error_extending" || asked:
			return nil, fmt.Errorf("Cinder could not make volume %s larger (%q, %d GiB): ask the cloud's operator, who knows why", id, quote.Clip(v.Status), v.Size) //nolint:staticcheck // a name
		default:
			if err := p.extend(ctx, v, int(gibs)); err != nil {
				return nil, err
			}
			asked = true
		}
		if v, err = p.getOurs(ctx, id); err != nil {
			return nil, err
		}
	}
}

// extend asks for a volume to grow.
func (p *Provider) extend(ctx context.Context, v volumes.Volume, gibs int) error {
	ask := func(microversion string) error {
		_, err := call(ctx, p, fmt.Sprintf("to extend volume %s to %d GiB", v.ID, gibs), func(ctx context.Context, s *session) (done, error) {
			return done{}, volumes.ExtendSize(ctx, s.with(microversion), v.ID, volumes.ExtendSizeOpts{NewSize: gibs}).ExtractErr()
		})
		return err
	}
	err := ask(withExtendInUse)
	if refused(err, http.StatusNotAcceptable) {
		err = ask("")
	}
	if refused(err, http.StatusBadRequest) {
		// Its size may be that already, by a request whose answer was lost; or another change be under way.
		now, again := p.getOurs(ctx, v.ID)
		switch {
		case again != nil:
			return again
		case int64(now.Size) >= int64(gibs) || now.Status == "extending":
			return nil
		case len(now.Attachments) > 0:
			return fmt.Errorf("%w: %w: this cloud extends volumes that are in use not at all, or not of this type: try again when nothing mounts it", providers.ErrBusy, err)
		}
		return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, v.ID, quote.Clip(now.Status), err)
	}
	return err
}
