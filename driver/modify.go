package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Change is what shall be different of a volume. A zero field stays as it is.
type Change = providers.Change

// Modify makes the volume what change says, also while it is used on any node, and grows its file system if it is mounted on this
// one. It can be called again at any time, and goes on from where an earlier call has stopped. step is told how far it is; the
// answer says what is left to others.
// Errors: volume.Invalid and nothing was changed; volume.Busy with the reason and, if the cloud tells, when it can be done.
func (d *Driver) Modify(ctx context.Context, name string, change Change, step func(volume.Step)) (outcome string, err error) {
	about := volume.Error{Op: volume.Modify, Volume: name}
	if err := d.node.Serves(name); err != nil {
		return "", volume.At(err, about)
	}
	here, err := d.thisNode(ctx)
	if err != nil {
		return "", volume.At(err, about)
	}
	about.Node = here.ID
	step(volume.Step{Phase: volume.Modifying})
	// The volume's gate is not held: the cloud may take an hour, and containers come and go meanwhile.
	vol, err := d.controller.Modify(ctx, name, change)
	if err != nil {
		return "", volume.At(err, about)
	}
	about.ID = vol.ID
	d.log.WithField("volume", name).WithField("id", vol.ID).WithField("size", volume.FormatSize(vol.Size)).Info("Volume modified")
	if change.Size == 0 {
		return "the volume is changed", nil
	}
	size := volume.FormatSize(vol.Size)
	switch {
	case !vol.Held():
		return fmt.Sprintf("the disk has %s; its file system grows when it is next mounted", size), nil
	case vol.Attachment.Node != here.ID:
		return fmt.Sprintf("the disk has %s; its file system grows on node %s, where it is mounted, within %s", size, vol.Attachment.Node, reconcileEvery), nil
	}
	if grown, err := d.growTo(ctx, name, vol, step); err != nil {
		return "", volume.At(volume.Also(err, fmt.Sprintf("the disk has %s, its file system has not grown yet", size)), about)
	} else if !grown {
		return fmt.Sprintf("the disk has %s; its file system grows when it is next mounted", size), nil
	}
	return fmt.Sprintf("the disk and its file system have %s", size), nil
}

// growTo grows the file system of a volume whose disk this node holds, once the device shows the disk's new size. It returns
// false if the volume is not mounted here.
func (d *Driver) growTo(ctx context.Context, name string, vol *providers.Volume, step func(volume.Step)) (grown bool, err error) {
	step(volume.Step{Phase: volume.WaitingForSize})
	if err := d.awaitSize(ctx, vol); err != nil {
		return false, err
	}
	step(volume.Step{Phase: volume.Growing})
	_, err = d.do(ctx, name, job{
		op: volume.Modify, phase: volume.Growing,
		work: func(ctx context.Context, h *handle) error {
			if !h.IsStaged(ctx) {
				return nil
			}
			grown = true
			return h.Grow(ctx)
		},
	})
	return err == nil && grown, err // with an error the job may still be at it
}

// sizeTimeout is how long a device may take to show the size that the cloud says its disk has.
const sizeTimeout = 2 * time.Minute

func (d *Driver) awaitSize(ctx context.Context, vol *providers.Volume) error {
	limit, cancel := context.WithTimeout(ctx, sizeTimeout)
	defer cancel()
	for retry := (pause.Backoff{Least: 100 * time.Millisecond, Most: 2 * time.Second}); ; {
		dev, err := d.node.FindDevice(limit, vol.Serial)
		if err == nil && dev.Size >= vol.Size {
			return nil
		}
		if retry.Wait(limit) == nil {
			continue
		}
		if err == nil {
			err = fmt.Errorf("device %s still has %s", dev.Path, volume.FormatSize(dev.Size))
		} else if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", mount.ErrNoDevice, err)
		}
		return volume.Advise(err, "the file system grows by itself once the kernel shows the new size; if it never does, restart what uses the volume")
	}
}
