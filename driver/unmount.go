package driver

import (
	"context"
	"errors"
	"time"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Unmount notes that the mount ID no longer uses the volume. With the last ID the volume is unmounted and detached, so that
// another node can have it when Unmount returns; after Docker's copy-up probe it is kept for probeGrace. An ID that is not
// known is success.
func (d *Driver) Unmount(ctx context.Context, name, id string) error {
	return d.endUse(ctx, name, volume.Unmount, node.Use{Kind: node.Docker, ID: id})
}

func (d *Driver) endUse(ctx context.Context, name string, op volume.Op, use node.Use) error {
	h := d.known(name)
	if h == nil {
		return nil
	}
	if e := h.Entry(); e == nil || len(e.Uses) > 0 && !e.Has(use) {
		return nil // not ours to wait for, whatever is being done with the volume
	}
	_, err := d.do(ctx, name, job{
		op: op, phase: volume.Unmounting, keep: idleTTL, insist: true, // Docker does not send it twice
		work: func(ctx context.Context, h *handle) error { return d.unuse(ctx, h, use) },
	})
	return err
}

// unuse takes the use off the volume, and releases the volume if that was the last.
func (d *Driver) unuse(ctx context.Context, h *handle, use node.Use) error {
	e := h.Entry()
	switch {
	case e == nil:
		return nil
	case e.Has(use):
		last := len(e.Uses) == 1
		probed := last && use.Kind == node.Docker && time.Since(h.usedSince) < d.probe
		h.Unuse(use, !probed)
		if probed {
			h.keep = probeGrace
		}
		if probed || !last {
			return nil
		}
	case len(e.Uses) > 0:
		return nil
	case !e.Releasing:
		// Whose ID it is the journal does not know; the kernel knows whether anybody is left.
		if users, err := h.Users(ctx); err != nil {
			return volume.Advise(err, "the disk stays attached to this node")
		} else if len(users) > 0 {
			return nil
		}
	}
	return d.release(ctx, h)
}

// release unmounts the volume and detaches it, if the kernel lets go of it. It continues where an earlier release has
// stopped. What is busy stays attached, and the error says so.
func (d *Driver) release(ctx context.Context, h *handle) (err error) {
	defer func() { h.setProblem(err) }()
	e := h.Entry()
	if e == nil {
		return nil
	}
	h.Release()
	here, err := d.thisNode(ctx)
	if err != nil {
		return err
	}
	if e.Formatting {
		if err := d.finishFormat(ctx, h, here); err != nil {
			h.Log().WithError(err).Warn("A format that was cut short could not be finished; the volume holds no data, remove it and create it again")
		}
	}
	if err := h.Unstage(ctx, h); err != nil {
		return volume.Advise(err, "the disk stays attached to this node, and its release is tried again")
	}
	h.Step(volume.Step{Phase: volume.Detaching})
	if err := d.detach(ctx, h, here); err != nil {
		return volume.Advise(err, "the disk is not yet detached from this node; its release is tried again")
	}
	if err := h.Forget(); err != nil {
		return err
	}
	h.Log().WithField("id", e.Volume).Info("Volume released")
	return nil
}

// finishFormat completes a format that a crash cut short.
func (d *Driver) finishFormat(ctx context.Context, h *handle, here providers.Node) error {
	vol, err := d.controller.Find(ctx, h.Name)
	if err != nil {
		return err
	}
	return h.FinishFormat(ctx, vol, vol.HeldBy(here.ID), cloudFor{d.controller, here}, h)
}

// detach has the cloud take the disk from this node. When it returns, the kernel has let the device go and the cloud has
// said that it accepted the request: by the device, which nothing else takes away, or in words where there was none.
//
// A disk is this node's to detach if this boot has seen its device, or asked for its attach. Any other that the cloud says this
// node holds stays attached, and is no longer in the journal, for the search for strays to watch.
func (d *Driver) detach(ctx context.Context, h *handle, here providers.Node) error {
	e := h.Entry()
	if e.Taken {
		vol, err := d.controller.Find(ctx, e.Name)
		if err != nil && !errors.Is(err, providers.ErrNotFound) {
			return err
		}
		if err != nil || vol.ID != e.Volume || !vol.HeldBy(here.ID) {
			return nil // its device may stay in the kernel, which nothing here can change
		}
	}
	hasDevice := d.node.HasDevice(ctx, e.Serial)
	if !e.Ours && !h.Seen() && !hasDevice {
		vol, err := d.controller.Find(ctx, e.Name)
		if err != nil && !errors.Is(err, providers.ErrNotFound) {
			return err
		}
		if err == nil && vol.ID == e.Volume && vol.HeldBy(here.ID) && vol.Attachment.State != providers.Detaching {
			_ = d.reportAbsent(vol)
		}
		return nil
	}
	if err := d.controller.Detach(ctx, e.Volume, here); err != nil {
		return err
	}
	gone, cancel := context.WithTimeoutCause(ctx, controller.DetachTimeout, controller.ErrDetachTimeout)
	defer cancel()
	if err := h.WaitGone(gone); err != nil {
		return err
	}
	if hasDevice {
		d.controller.Departed(e.Name, e.Volume, here)
		return nil
	}
	d.mayComeLate(e)
	return d.controller.ConfirmDetach(gone, e.Name, e.Volume, here)
}
