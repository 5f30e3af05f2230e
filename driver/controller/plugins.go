package controller

import (
	"context"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// PluginDisks lists the disks of another plugin. Errors: volume.Invalid if the provider knows of none, or not of that one.
func (c *Controller) PluginDisks(ctx context.Context, plugin string) ([]providers.PluginDisk, error) {
	lister, can := c.cloud.provider.(providers.PluginLister)
	if !can || len(lister.Plugins()) == 0 {
		return nil, volume.Fail(volume.Invalid, "this provider knows of no other plugins for Docker on its cloud", "adopt disks one by one, by their ids")
	}
	return within(ctx, queryTimeout, func(ctx context.Context) ([]providers.PluginDisk, error) { return lister.PluginDisks(ctx, plugin) })
}
