package openstack

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Modify enlarges volumes, also in use if the cloud can. It does not change the type, which could move the data for hours.
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	if change.IOPS != 0 || change.Throughput != 0 {
		return nil, fmt.Errorf("%w: the volume type determines IOPS and throughput in OpenStack: leave them out", providers.ErrInvalid)
	}
	if change.Type != "" {
		d, err := p.GetOurs(ctx, id)
		switch {
		case err != nil:
			return nil, err
		case change.Type != d.Native.VolumeType:
			return nil, fmt.Errorf("%w: volume %s is of type %q, which cannot be changed: create a new volume and copy the data", providers.ErrInvalid, id, sanitize.Clip(d.Native.VolumeType))
		}
		change.Type = ""
	}
	return p.Provider.Modify(ctx, id, change)
}

// extend enlarges a volume, and returns when that is done.
func (p *Provider) extend(ctx context.Context, d managed.Disk[volume], gib int64) error {
	ask := func(microversion string) error {
		_, err := call(ctx, p, fmt.Sprintf("to extend volume %s to %d GiB", d.ID, gib), func(ctx context.Context, s *session) (done, error) {
			return done{}, volumes.ExtendSize(ctx, s.with(microversion), d.ID, volumes.ExtendSizeOpts{NewSize: int(gib)}).ExtractErr()
		})
		return err
	}
	if d.Native.Status == "error_extending" {
		return notExtended(d.Native)
	}
	err := ask(withExtendInUse)
	if refused(err, http.StatusNotAcceptable) {
		err = ask("")
	}
	switch {
	case refused(err, http.StatusBadRequest) && len(d.Native.Attachments) > 0:
		return fmt.Errorf("%w: %w: this cloud cannot extend a volume of this type in use: try again when nothing mounts it", providers.ErrBusy, err)
	case refused(err, http.StatusBadRequest):
		return isBusy(d.Native, err)
	case err != nil:
		return err
	}
	for retry := (pause.Backoff{Most: 2 * time.Second}); ; {
		v, err := p.get(ctx, d.ID)
		switch {
		case err != nil:
			return err
		case int64(v.Size) >= gib:
			return nil
		case v.Status != "extending":
			return notExtended(v)
		}
		if err := retry.Wait(ctx); err != nil {
			return fmt.Errorf("volume %s is still being extended: %w", d.ID, err)
		}
	}
}

func notExtended(v volume) error {
	return fmt.Errorf("Cinder could not extend volume %s (%q, %d GiB): ask the cloud's operator, who knows why", v.ID, sanitize.Clip(v.Status), v.Size) //nolint:staticcheck // a name
}
