package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Remove removes the volume, and its disk as its reclaim policy says. It refuses while any node uses it. A volume that does not exist
// is success.
func (d *Driver) Remove(ctx context.Context, name string) error { return d.RemoveDisk(ctx, name, "") }

// RemoveDisk is Remove of a volume that is that disk, or any if disk is empty. Errors: volume.Conflict if it is another.
func (d *Driver) RemoveDisk(ctx context.Context, name, disk string) error {
	_, err := d.do(ctx, name, job{
		op: volume.Remove, phase: volume.Removing, keep: idleTTL, limit: withSnapshot,
		work: func(ctx context.Context, h *handle) error { return d.remove(ctx, h, disk) },
	})
	return err
}

func (d *Driver) remove(ctx context.Context, h *handle, disk string) error {
	vol, err := d.freeInTime(ctx, h)
	switch {
	case errors.Is(err, providers.ErrNotFound):
		d.controller.Missing(h.Name)
		return nil
	case err != nil:
		return err
	case disk != "" && vol.ID != disk:
		return anotherDisk(vol, disk)
	}
	h.Step(volume.Step{Phase: volume.Removing})
	return volume.At(d.controller.Remove(ctx, vol, h.Step), volume.Error{ID: vol.ID})
}

func anotherDisk(vol *providers.Volume, meant string) error {
	return volume.Fail(volume.Conflict, fmt.Sprintf("the volume is disk %s now, and not %s, which was to be removed", vol.ID, meant), "see what it holds, and begin again")
}

// freeInTime is free in work of which only a snapshot may take long.
func (d *Driver) freeInTime(ctx context.Context, h *handle) (*providers.Volume, error) {
	ctx, cancel := withLimit(ctx, workTimeout)
	defer cancel()
	return d.free(ctx, h)
}

// free returns the volume once no node holds it, this one included. Errors: volume.InUse, volume.Held; providers.ErrNotFound.
func (d *Driver) free(ctx context.Context, h *handle) (vol *providers.Volume, err error) {
	var disk string
	if e := h.Entry(); e != nil {
		disk = e.Volume // which the journal forgets when the disk is released
	}
	defer func() { err = volume.At(err, volume.Error{ID: disk}) }()
	if err := d.releaseUnused(ctx, h); err != nil {
		return nil, err
	}
	here, err := d.thisNode(ctx)
	if err != nil {
		return nil, err
	}
	return d.controller.AwaitFree(ctx, controller.Discard{
		Name: h.Name, Node: here, Progress: h,
		Release: func(ctx context.Context, vol *providers.Volume, since time.Time) error {
			disk = vol.ID
			return d.releaseFound(ctx, h, vol, since)
		},
	})
}

// releaseFound releases a volume that the cloud says this node holds, first found so at that time, and that the journal does
// not know.
func (d *Driver) releaseFound(ctx context.Context, h *handle, vol *providers.Volume, since time.Time) error {
	switch {
	case h.Entry() != nil:
	case vol.Attachment.State == providers.Detaching: // this node has released it; the cloud is not done
		if time.Since(since) >= controller.DetachTimeout {
			return controller.ErrDetachTimeout
		}
		return nil
	case !d.node.HasDevice(ctx, vol.Serial):
		if time.Since(since) >= providers.MaxStale { // the answers are not of a time before a detach
			return d.reportAbsent(vol)
		}
		return nil
	}
	if err := h.Record(ctx, vol, vol.Attachment.Node, false); err != nil {
		return err
	}
	return d.releaseUnused(ctx, h)
}

// releaseUnused releases what this node still has of a volume that none of its containers uses.
func (d *Driver) releaseUnused(ctx context.Context, h *handle) error {
	e := h.Entry()
	if e == nil {
		return nil
	}
	// Not every use stands for a container: no Unmount comes for one that died while the engine was down. Those of which the
	// kernel has no mount are dropped, though between the answer to Mount and the container's own mount it has none either:
	// the engine sends no Remove while a container of its own refers to the volume, and refers to it from the container's
	// creation on. A Mount under way here has the gate.
	users, err := h.Users(ctx)
	used, n := len(users) > 0, len(e.Uses)
	switch {
	case err != nil:
		return err
	case n > 0 && !used && !h.Seen():
		return volume.Fail(volume.InUse, fmt.Sprintf("in use by %d container(s) on this node", n), "remove them first")
	case used:
		return volume.Fail(volume.InUse, fmt.Sprintf("in use by %s on this node", users), "stop what uses it first")
	case n > 0:
		h.Log().WithField("id", e.Volume).WithField("ids", e.IDs()).Warn("No container has the volume mounted, and no Unmount came: its mount IDs are dropped, since the volume is removed")
		d.found(h.Name, volume.Abandoned)
	}
	h.AbandonFormat() // not worth finishing
	return d.release(ctx, h)
}
