package driver

import (
	"context"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// PluginDisk is a disk of another plugin for Docker.
type PluginDisk = providers.PluginDisk

// PluginDisks lists the disks of another plugin that could be adopted, sorted by name. Errors: volume.Invalid for a plugin that this cloud
// does not have.
func (d *Driver) PluginDisks(ctx context.Context, plugin string) ([]PluginDisk, error) {
	all, err := d.controller.PluginDisks(ctx, plugin)
	return all, volume.At(d.stopping(err), volume.Error{Op: volume.List})
}

// layouts are what the containers of other plugins see, where that is not the whole file system. rexray shows a directory of the same
// name as blockvol.
var layouts = map[string]string{"rexray": mount.LayoutData}

// Adopt makes a disk a volume as it is. plugin is the plugin that it has been used with, "" if containers shall see all of its file system.
func (d *Driver) Adopt(ctx context.Context, name, disk, plugin string) error {
	record := providers.Record{}
	if layout := layouts[plugin]; layout != "" {
		record[volume.KeyLayout] = layout
	}
	return d.createAs(ctx, name, map[string]string{"volume-id": disk}, record)
}
