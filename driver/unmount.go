package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Unmount notes that the mount ID no longer uses the volume. With the last ID the volume is unmounted and detached, so that
// another node can have it when Unmount returns; after a glance at it, it is kept for comeback. An ID that is not known is success.
func (d *Driver) Unmount(ctx context.Context, name, id string) error {
	v := d.known(name)
	if v == nil {
		return nil
	}
	if e := v.journaled(); e == nil || len(e.IDs) > 0 && !e.has(id) {
		return nil // not ours to wait for, whatever is being done with the volume
	}
	v, err := d.enter(ctx, name, "being unmounted")
	if err != nil {
		// Docker does not send it twice.
		d.tasks.Go(func() {
			if v, err := d.enter(d.ctx, name, "being unmounted"); err == nil {
				_ = d.unuse(d.ctx, v, id)
			}
		})
		return err
	}
	return d.unuse(ctx, v, id)
}

// unuse takes the mount ID off the volume, and releases the volume if that was the last. It gives the gate back.
func (d *Driver) unuse(ctx context.Context, v *volume, id string) error {
	owns := true
	defer func() {
		if owns {
			d.leaveUnused(v)
		}
	}()
	e := v.journaled()
	if e == nil {
		return nil
	}
	if e.has(id) {
		e = e.without(id)
		glanced := len(e.IDs) == 0 && time.Since(v.usedSince) < d.glance
		if len(e.IDs) == 0 && !glanced {
			e = e.releasing()
		}
		d.noteUnused(v, e)
		if glanced {
			d.releaseIn(v, comeback)
			owns = false
			d.leave(v)
			return nil
		}
	}
	switch {
	case len(e.IDs) > 0:
		return nil
	case !e.Releasing:
		// Whose ID it is the journal does not know; the kernel knows whether anybody is left.
		if used, err := d.usedByContainers(ctx, v, e); used || err != nil {
			if err != nil {
				err = fmt.Errorf("%w: volume %q (%s) stays attached", err, v.name, e.Volume)
			}
			return err
		}
	}
	var err error
	owns, err = d.background(ctx, v, func(ctx context.Context) error { return d.release(ctx, v) })
	return err
}

// noteUnused takes down that there is less use of the volume. A journal that cannot be written must not hold that up: what it
// wrongly says of mount IDs is found out from the kernel.
func (d *Driver) noteUnused(v *volume, e *entry) {
	if err := d.note(v, e); err != nil {
		d.volumeLog(v).WithError(err).Error("The journal could not be brought up to date")
	}
}

// release unmounts the volume and detaches it, if the kernel lets go of it. It continues where an earlier release has
// stopped. Never lazy, never forced: what is busy stays attached, and the error says so.
func (d *Driver) release(ctx context.Context, v *volume) (err error) {
	defer func() { v.setKept(err) }()
	e := v.journaled()
	if e == nil {
		return nil
	}
	if !e.Releasing {
		e = e.releasing()
		d.noteUnused(v, e)
	}
	node, err := d.provider.Node(ctx)
	if err != nil {
		return fmt.Errorf("%w: volume %q stays attached", err, v.name)
	}
	if e.Formatting {
		if err := d.finishFormat(ctx, v, node); err != nil {
			d.volumeLog(v).WithError(err).Warn("A format that was cut short could not be finished; the volume holds no data, remove it and create it again")
		}
	}
	v.step("being unmounted")
	if err := d.host.Unstage(ctx, v.dir); err != nil {
		return fmt.Errorf("%w: volume %q (%s) stays attached to node %s, and its release is tried again", err, v.name, e.Volume, node.ID)
	}
	v.setPath("")
	if err := d.awaitFree(ctx, v, e); err != nil {
		return fmt.Errorf("%w: volume %q (%s) stays attached to node %s, and its release is tried again", err, v.name, e.Volume, node.ID)
	}
	v.step("being detached")
	if err := d.detachOwn(ctx, v, e, node); err != nil {
		return fmt.Errorf("%w: volume %q (%s) is not yet detached from node %s; its release is tried again", err, v.name, e.Volume, node.ID)
	}
	v.setDevice(mount.Device{})
	if err := d.journal.remove(v.name); err != nil {
		return fmt.Errorf("%w: volume %q (%s) is detached, but its journal entry stays until that is mended", err, v.name, e.Volume)
	}
	v.setEntry(nil)
	d.volumeLog(v).WithField("id", e.Volume).Info("Volume released")
	return nil
}

// awaitFree waits for the kernel to hold no file system on the device, in whichever mount namespace.
func (d *Driver) awaitFree(ctx context.Context, v *volume, e *entry) error {
	dev, err := d.deviceOf(ctx, v, e)
	if err != nil || dev == (mount.Device{}) {
		return err
	}
	v.step("still used by a process of this node, waited for")
	ctx, cancel := context.WithTimeout(ctx, freeTimeout)
	defer cancel()
	return d.host.WaitFree(ctx, dev)
}

// detachOwn detaches what is this node's to detach: a disk whose device this boot has seen, or whose attach it asked for. Any
// other that the cloud says this node holds stays attached, and is no longer in the journal, for findStrays to watch.
func (d *Driver) detachOwn(ctx context.Context, v *volume, e *entry, node providers.Node) error {
	if e.Ours || v.seen(e) || d.isHere(ctx, e.Serial) {
		return d.detach(ctx, v, e, node)
	}
	vol, err := d.provider.Find(ctx, e.Name)
	if err != nil && !errors.Is(err, providers.ErrNotFound) {
		return err
	}
	if err == nil && vol.ID == e.Volume && vol.HeldBy(node.ID) && vol.Attachment.State != providers.Detaching {
		_ = d.notSeen(vol)
	}
	return nil
}

var errDetachTimeout = fmt.Errorf("the cloud has not detached it within %s", detachTimeout)

// detach has the cloud take the volume from this node. When it returns, the kernel has let the device go and the cloud has
// said that it took the request: by the device, which nothing else takes away, or in words where there was none.
func (d *Driver) detach(ctx context.Context, v *volume, e *entry, node providers.Node) error {
	here := d.isHere(ctx, e.Serial)
	var retry backoff
	for begun := time.Now(); ; {
		err := d.provider.Detach(ctx, e.Volume, node.ID, false)
		v.detachedAt = time.Now() // perhaps also if it failed
		if err == nil || errors.Is(err, providers.ErrNotFound) {
			break
		}
		if !errors.Is(err, providers.ErrBusy) || time.Since(begun) >= detachTimeout {
			return err
		}
		if time.Since(begun) < attachDoubt {
			retry.shorten() // most likely an attach is ending
		}
		if cause := retry.wait(ctx); cause != nil {
			return fmt.Errorf("%w: %w", cause, err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, detachTimeout, errDetachTimeout)
	defer cancel()
	if err := d.host.WaitGone(ctx, e.Serial); err != nil {
		return err
	}
	v.detachedAt = time.Time{}
	if here {
		d.catalog.leaving(v.name, e.Volume, node.ID)
		return nil
	}
	d.mayComeLate(e)
	retry = backoff{}
	for {
		asked := d.catalog.now()
		vol, err := d.provider.Find(ctx, e.Name)
		switch {
		case errors.Is(err, providers.ErrNotFound):
			return nil
		case err != nil:
			return err
		case vol.ID != e.Volume, !vol.HeldBy(node.ID), vol.Attachment.State == providers.Detaching:
			// To see "detaching" is enough, and polling for more would cost the cloud something for each of its seconds:
			// it has accepted the request, and no byte can come from here any more. The next holder's Attach waits for
			// the cloud; should the cloud change its mind, findStrays sees the volume held.
			d.catalog.learn(asked, e.Name, vol)
			return nil
		}
		// Most likely the answer is of a time before the request.
		if err := retry.wait(ctx); err != nil {
			return err
		}
	}
}
