package driver

import (
	"context"

	"github.com/blockvol/blockvol/driver/volume"
)

// Retain has the disk of the volume kept when the volume is removed.
func (d *Driver) Retain(ctx context.Context, name string) error {
	_, err := d.do(ctx, name, job{op: volume.Modify, phase: volume.Modifying, work: d.retain})
	return err
}

func (d *Driver) retain(ctx context.Context, h *handle) error {
	return d.controller.Retain(ctx, h.Name)
}

// Forget removes the volume and keeps its disk with the data, whatever its reclaim policy says. It refuses while any node uses it. A
// volume that does not exist is success.
func (d *Driver) Forget(ctx context.Context, name string) error {
	_, err := d.do(ctx, name, job{
		op: volume.Remove, phase: volume.Removing, keep: idleTTL,
		work: func(ctx context.Context, h *handle) error {
			// First: from then on nothing can delete the disk.
			if err := d.retain(ctx, h); err != nil && volume.CodeOf(err) != volume.NotFound {
				return err
			}
			return d.remove(ctx, h)
		},
	})
	return err
}
