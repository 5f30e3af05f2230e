package driver

import (
	"context"
	"fmt"
	"strconv"

	"github.com/blockvol/blockvol/providers"
)

// Get tells what is known of a volume. It never waits for a mount. Errors: ErrNotFound only if the cloud said so,
// ErrUnsure if it could not be asked.
func (d *Driver) Get(ctx context.Context, name string) (Info, error) {
	if v := d.known(name); v != nil && v.journaled() != nil {
		return d.info(v, d.catalog.last(name)), nil
	}
	vol, err := d.catalog.find(ctx, name)
	if err != nil {
		return Info{}, fmt.Errorf("volume %q: %w", name, err)
	}
	return d.info(d.known(name), vol), nil
}

// Path returns where the volume is mounted on this node, or "" if it is not.
func (d *Driver) Path(ctx context.Context, name string) (string, error) {
	info, err := d.Get(ctx, name)
	return info.Mountpoint, err
}

// List tells of all volumes of the cluster, sorted by name; without their Status.
func (d *Driver) List(ctx context.Context) ([]Info, error) {
	all, err := d.catalog.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: the volumes cannot be listed", err)
	}
	infos := make([]Info, len(all))
	for i, vol := range all {
		infos[i] = Info{Name: vol.Name, CreatedAt: vol.CreatedAt}
		if v := d.known(vol.Name); v != nil {
			infos[i].Mountpoint = v.mountpoint()
		}
	}
	return infos, nil
}

// info joins what this node has of a volume with what the cloud last said of it; either may be nil.
func (d *Driver) info(v *volume, vol *providers.Volume) Info {
	info := Info{Status: make(map[string]any)}
	if vol != nil {
		info.Name, info.CreatedAt = vol.Name, vol.CreatedAt
		describeVolume(info.Status, vol)
		if d.isAbsent(vol) {
			info.Status["problem"] = errNotSeen(vol).Error()
		}
	}
	if v == nil {
		return info
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	info.Name, info.Mountpoint = v.name, v.path
	if v.entry == nil {
		return info
	}
	if info.CreatedAt.IsZero() {
		info.CreatedAt = v.entry.CreatedAt
	}
	info.Status["id"] = v.entry.Volume
	info.Status["containers"] = len(v.entry.IDs)
	switch {
	case v.path != "":
		info.Status["state"] = "mounted"
		info.Status["device"] = v.device.Path
	case v.doing != "":
		info.Status["state"] = v.current()
	case v.entry.Releasing:
		info.Status["state"] = "being released"
	default:
		info.Status["state"] = "attached"
	}
	if v.entry.Releasing && v.kept != nil {
		info.Status["problem"] = v.kept.Error()
	}
	return info
}

// describeVolume writes the effective values of a volume, under the names of the create options.
func describeVolume(status map[string]any, vol *providers.Volume) {
	for key, value := range vol.Details {
		status[key] = value
	}
	for key, value := range vol.Record {
		if key != recTags {
			status[key] = value
		}
	}
	set := settingsOf(vol.Record)
	status["id"] = vol.ID
	status["size"] = FormatSize(vol.Size)
	status["layout"] = set.layout
	status["reclaim"] = string(set.reclaim)
	status[recFormatted] = strconv.FormatBool(set.formatted)
	if vol.Zone != "" {
		status["zone"] = vol.Zone
	}
	if vol.Snapshot != "" {
		status["snapshot"] = vol.Snapshot
	}
	status["state"] = "detached"
	if vol.Held() {
		status["state"] = string(vol.Attachment.State)
		status["node"] = vol.Attachment.Node
	}
}
