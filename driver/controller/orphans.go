package controller

import (
	"context"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Orphans lists the disks of the cluster that are no volumes. Errors: volume.Invalid if the provider cannot tell.
func (c *Controller) Orphans(ctx context.Context) ([]providers.Orphan, error) {
	lister, can := c.cloud.provider.(providers.OrphanLister)
	if !can {
		return nil, volume.Fail(volume.Invalid, "this provider cannot list disks that are no volumes", "")
	}
	return within(ctx, queryTimeout, lister.Orphans)
}
