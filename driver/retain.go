package driver

import (
	"context"
	"errors"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Retain has the disk of the volume kept when the volume is removed.
func (d *Driver) Retain(ctx context.Context, name string) error {
	_, err := d.do(ctx, name, job{op: volume.Modify, phase: volume.Modifying, work: func(ctx context.Context, h *handle) error {
		return d.retain(ctx, h, "")
	}})
	return err
}

func (d *Driver) retain(ctx context.Context, h *handle, disk string) error {
	vol, err := d.controller.Find(ctx, h.Name)
	switch {
	case err != nil:
		return err
	case disk != "" && vol.ID != disk:
		return anotherDisk(vol, disk)
	}
	return d.controller.Retain(ctx, vol)
}

// Forget removes the volume and keeps its disk with the data, whatever its reclaim policy says. It refuses while any node uses it, and
// with volume.Conflict if the volume is another than that disk; any will do if disk is empty. A volume that does not exist is success.
func (d *Driver) Forget(ctx context.Context, name, disk string) error {
	_, err := d.do(ctx, name, job{
		op: volume.Remove, phase: volume.Removing, keep: idleTTL, limit: withSnapshot,
		work: func(ctx context.Context, h *handle) error {
			// First, so that what is refused changes nothing.
			if _, err := d.freeInTime(ctx, h); err != nil && !errors.Is(err, providers.ErrNotFound) {
				return err
			}
			// From then on nothing can delete the disk.
			if err := d.retain(ctx, h, disk); err != nil && volume.CodeOf(err) != volume.NotFound {
				return err
			}
			return d.remove(ctx, h, disk)
		},
	})
	return err
}
