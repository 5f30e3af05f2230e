package driver

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Users are who has a volume mounted on this node.
type Users = mount.Users

// Info is what Docker is told of a volume.
type Info struct {
	Name       string
	ID         string         // the cloud's; empty in List
	Size       int64          // bytes; 0 if the cloud has not been asked yet
	Mountpoint string         // empty unless mounted on this node
	CreatedAt  time.Time      // zero if unknown
	Users      Users          // who has it mounted on this node, as of the last Look or of half a minute ago
	Status     map[string]any // effective values; its keys and their values are documented in docs/operations.md
}

// Get tells what is known of a volume. It never waits for a mount. Errors: volume.NotFound only if the cloud said so,
// volume.Unsure if it could not be asked.
func (d *Driver) Get(ctx context.Context, name string) (Info, error) {
	if h := d.known(name); h != nil && h.Entry() != nil {
		return d.info(h, d.controller.Last(name)), nil
	}
	vol, err := d.controller.Get(ctx, name)
	if err != nil {
		return Info{}, volume.At(d.stopping(err), volume.Error{Op: volume.Get, Volume: name})
	}
	return d.info(d.known(name), vol), nil
}

// Path returns where the volume is mounted on this node, or "" if it is not.
func (d *Driver) Path(ctx context.Context, name string) (string, error) {
	info, err := d.Get(ctx, name)
	return info.Mountpoint, err
}

// All tells all that is known of all volumes of the cluster, sorted by name.
func (d *Driver) All(ctx context.Context) ([]Info, error) {
	all, err := d.list(ctx)
	infos := make([]Info, len(all))
	for i, vol := range all {
		infos[i] = d.info(d.known(vol.Name), vol)
	}
	return infos, err
}

// Look asks the kernel who uses these volumes, without names all that this node has something of, for Get and Attached to tell. It
// returns when that is known, or with ctx.
func (d *Driver) Look(ctx context.Context, names ...string) {
	if len(names) == 0 {
		names = d.held()
	}
	var all sync.WaitGroup
	for _, name := range names {
		if h := d.known(name); h != nil {
			all.Go(func() {
				if _, err := h.Users(ctx); err != nil && ctx.Err() == nil {
					h.Log().WithError(err).Warn("Who uses the volume cannot be told")
				}
			})
		}
	}
	all.Wait()
}

// Attached tells all that is known, without asking the cloud, of the volumes that this node has something of, sorted by name.
func (d *Driver) Attached() []Info {
	names := d.held()
	slices.Sort(names)
	var infos []Info
	for _, name := range names {
		if h := d.known(name); h != nil && h.Entry() != nil {
			infos = append(infos, d.info(h, d.controller.Last(name)))
		}
	}
	return infos
}

func (d *Driver) list(ctx context.Context) ([]*providers.Volume, error) {
	all, err := d.controller.List(ctx)
	if err != nil {
		return nil, volume.At(d.stopping(fmt.Errorf("%w: the volumes cannot be listed", err)), volume.Error{Op: volume.List})
	}
	return all, nil
}

// List tells of all volumes of the cluster, sorted by name; without their Status.
func (d *Driver) List(ctx context.Context) ([]Info, error) {
	all, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, len(all))
	for i, vol := range all {
		infos[i] = Info{Name: vol.Name, CreatedAt: vol.CreatedAt}
		if h := d.known(vol.Name); h != nil {
			infos[i].Mountpoint = h.Mountpoint()
		}
	}
	return infos, nil
}

// info joins what this node has of a volume with what the cloud last said of it; either may be nil.
func (d *Driver) info(h *handle, vol *providers.Volume) Info {
	info := Info{Status: make(map[string]any)}
	if vol != nil {
		info.Name, info.ID, info.Size, info.CreatedAt = vol.Name, vol.ID, vol.Size, vol.CreatedAt
		describeVolume(info.Status, vol)
		if d.isAbsent(vol) {
			info.Status["problem"] = absentError(vol).Error()
		}
		if err := d.node.Serves(vol.Name); err != nil {
			info.Status["problem"] = err.Error()
		}
	}
	if h != nil {
		h.describe(&info)
		last, due := d.scheduleOf(info.ID)
		if !last.IsZero() {
			info.Status["last-snapshot"] = last.Format(time.RFC3339)
		}
		if !due.IsZero() {
			info.Status["snapshot-due"] = due.Format(time.RFC3339)
		}
	}
	return info
}

// describe writes what this node has of the volume.
func (h *handle) describe(info *Info) {
	e := h.Entry()
	info.Name, info.Mountpoint = h.Name, h.Mountpoint()
	if e == nil {
		return
	}
	if info.CreatedAt.IsZero() {
		info.CreatedAt = e.CreatedAt
	}
	status, here := info.Status, h.report(e)
	info.ID = here.ID
	status["id"] = here.ID
	status["containers"] = len(here.Uses)
	if info.Users = h.LastUsers(); len(info.Users) > 0 {
		words := make([]string, len(info.Users))
		for i, user := range info.Users {
			words[i] = user.String()
		}
		status["used-by"] = words
	}
	status["state"] = here.State
	if here.State == "mounted" {
		status["device"] = here.Device
		if fstype := h.FSType(); fstype != "" {
			status["fstype"] = fstype
		}
		if since := h.MountedSince(); !since.IsZero() {
			status["mounted-since"] = since.UTC().Format(time.RFC3339)
		}
	}
	if !here.MeasuredAt.IsZero() {
		status["used"] = here.Space.Used
		status["available"] = here.Space.Available
		if here.Space.Inodes > 0 {
			status["inodes-used"] = here.Space.InodesUsed
			status["inodes-available"] = here.Space.Inodes - here.Space.InodesUsed
		}
	}
	if here.Phase != "" {
		status["phase"] = string(here.Phase)
		status["message"] = here.Message
	}
	if !here.Since.IsZero() {
		status["since"] = here.Since.UTC().Format(time.RFC3339)
	}
	if here.Problem != "" {
		status["problem"] = here.Problem
	}
	if node := h.wantedBy(); node != "" {
		status["wanted-by"] = node
	}
}

// describeVolume writes the effective values of a volume, under the names of the create options.
func describeVolume(status map[string]any, vol *providers.Volume) {
	for key, value := range vol.Details {
		status[key] = value
	}
	for key, value := range vol.Record {
		switch key {
		case volume.KeyTags, volume.KeyTaken, volume.KeyReplaces, volume.KeySince:
		case volume.KeyFence:
			if words := controller.FenceWords(value); words != "" {
				status["fenced"] = words
			}
		case volume.KeySchedule:
			if value != volume.NoSchedule {
				status["snapshot-schedule"] = value
			}
		case volume.KeyKeep:
			if volume.ScheduleOf(vol.Record).Exists() {
				status["snapshot-keep"] = value
			}
		default:
			status[key] = value
		}
	}
	set := volume.SettingsOf(vol.Record)
	status["id"] = vol.ID
	status["size"] = volume.FormatSize(vol.Size)
	status["layout"] = set.Layout
	status["reclaim"] = string(set.Reclaim)
	status[volume.KeyFormatted] = set.Formatted
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
