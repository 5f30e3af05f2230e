package controller

import (
	"context"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// PeerDisks lists the disks of another plugin. Errors: volume.Invalid if the provider knows of none, or not of that one.
func (c *Controller) PeerDisks(ctx context.Context, peer string) ([]providers.PeerDisk, error) {
	lister, can := c.cloud.provider.(providers.PeerLister)
	if !can || len(lister.Peers()) == 0 {
		return nil, volume.Fail(volume.Invalid, "this provider knows of no other plugins for Docker on its cloud", "adopt disks one by one, by their ids")
	}
	return within(ctx, queryTimeout, func(ctx context.Context) ([]providers.PeerDisk, error) { return lister.PeerDisks(ctx, peer) })
}
