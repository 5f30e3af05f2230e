package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// Remove does with the volume what its reclaim policy says. It refuses while any node uses it. A volume that does not exist
// is success.
func (d *Driver) Remove(ctx context.Context, name string) error {
	v, err := d.enter(ctx, name, "being removed")
	if err != nil {
		return err
	}
	owns, err := d.background(ctx, v, func(ctx context.Context) error { return d.remove(ctx, v) })
	if owns {
		d.leaveUnused(v)
	}
	return err
}

func (d *Driver) remove(ctx context.Context, v *volume) error {
	if err := d.letGo(ctx, v); err != nil {
		return err
	}
	vol, err := d.unheld(ctx, v)
	if errors.Is(err, providers.ErrNotFound) {
		d.catalog.forget(v.name, "")
		return nil
	}
	if err != nil {
		return err
	}
	set := settingsOf(vol.Record)
	log := d.volumeLog(v).WithField("id", vol.ID)
	switch set.reclaim {
	case ReclaimRetain:
		if err := whileHeld(ctx, func() error { return d.provider.Forget(ctx, vol.ID) }); err != nil {
			return fmt.Errorf("%w: volume %q (%s) was not removed", err, v.name, vol.ID)
		}
		log.Infof("Volume forgotten; its disk is kept, and comes back with the option volume-id=%s", vol.ID)
	case ReclaimSnapshot:
		if d.snapshots == nil {
			return fmt.Errorf("reclaim=snapshot, but this provider has no snapshots: volume %q (%s) was not removed", v.name, vol.ID)
		}
		// The time makes it this attempt's own: the snapshot of an earlier one, whose delete has failed, may be old.
		snapshot, err := d.snapshots.Snapshot(ctx, vol.ID, fmt.Sprintf("blockvol: last state of volume %s (%s), %s", v.name, vol.ID, time.Now().UTC().Format(time.RFC3339Nano)))
		if err != nil {
			return fmt.Errorf("%w: no snapshot of volume %q (%s) could be taken, so it was not removed", err, v.name, vol.ID)
		}
		log.WithField("snapshot", snapshot.ID).Infof("Snapshot taken; the volume comes back with the option snapshot=%s", snapshot.ID)
		fallthrough
	default:
		if err := whileHeld(ctx, func() error { return d.provider.Delete(ctx, vol.ID) }); err != nil {
			return fmt.Errorf("%w: volume %q (%s) was not removed", err, v.name, vol.ID)
		}
		log.Info("Volume deleted")
	}
	d.catalog.forget(v.name, vol.ID)
	return nil
}

// whileHeld makes a change of a volume that the cloud has just called free, again if the cloud then refuses it as held: one
// of the two answers was behind, if only for seconds.
func whileHeld(ctx context.Context, change func() error) error {
	var retry backoff
	for begin := time.Now(); ; {
		err := change()
		if !errors.Is(err, providers.ErrHeld) || time.Since(begin) > lag || retry.wait(ctx) != nil {
			return err
		}
	}
}

// unheld returns the volume once no node holds it, or an error that says who does. What this node holds unknowingly is
// released; a holder that is stopped or gone is displaced as a mount would.
func (d *Driver) unheld(ctx context.Context, v *volume) (*providers.Volume, error) {
	node, err := d.provider.Node(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: volume %q was not removed", err, v.name)
	}
	held := holderWatch{since: time.Now()}
	var retry backoff
	for {
		vol, err := d.find(ctx, v.name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: volume %q was not removed", err, v.name)
		case !vol.Held():
			return vol, nil
		case vol.HeldBy(node.ID) && vol.Attachment.State == providers.Detaching && v.journaled() == nil:
			// This node has let go of it; the cloud is not done.
			v.step("being detached from this node first")
			if time.Since(held.since) >= detachTimeout {
				return nil, fmt.Errorf("%w from node %s: volume %q (%s) was not removed", errDetachTimeout, node.ID, v.name, vol.ID)
			}
		case vol.HeldBy(node.ID) && v.journaled() == nil && !d.isHere(ctx, vol.Serial):
			v.step("being detached from this node first")
			if time.Since(held.since) >= lag { // the answers are not of a time before a detach
				return nil, fmt.Errorf("%w: the volume was not removed", d.notSeen(vol))
			}
		case vol.HeldBy(node.ID):
			if err := d.remember(ctx, v, vol, false); err != nil {
				return nil, err
			}
			if err := d.letGo(ctx, v); err != nil {
				return nil, err
			}
		default:
			taken, err := d.displace(ctx, v, vol, &held)
			if err != nil {
				return nil, err
			}
			// What this node has mounted since, it has released since.
			if !taken && held.taken == "" && !d.catalog.changedLately(v.name) {
				_, advice := v.state()
				return nil, fmt.Errorf("in use on node %s: volume %q (%s) was not removed%s", vol.Attachment.Node, v.name, vol.ID, advice)
			}
		}
		if err := retry.wait(ctx); err != nil {
			doing, _ := v.state()
			return nil, fmt.Errorf("%s, %w: volume %q was not removed", doing, err, v.name)
		}
	}
}

// letGo releases what this node still has of a volume that none of its containers uses.
func (d *Driver) letGo(ctx context.Context, v *volume) error {
	e := v.journaled()
	if e == nil {
		return nil
	}
	// Not every mount ID stands for a container: no Unmount comes for one that died while the engine was down. Those of which
	// the kernel has no mount are dropped, though between the answer to Mount and the container's own mount it has none either:
	// the engine sends no Remove while a container of its own refers to the volume, and refers to it from the container's
	// creation on. A Mount under way here has the gate.
	used, err := d.usedByContainers(ctx, v, e)
	if err != nil {
		return fmt.Errorf("%w: volume %q (%s) was not removed", err, v.name, e.Volume)
	}
	n := len(e.IDs)
	if n > 0 && (used || !v.seen(e)) {
		return fmt.Errorf("in use by %d container(s) on this node: volume %q (%s) was not removed", n, v.name, e.Volume)
	}
	if used {
		return fmt.Errorf("in use by a process on this node, though no container says so: volume %q (%s) was not removed", v.name, e.Volume)
	}
	if n > 0 {
		d.volumeLog(v).WithField("id", e.Volume).WithField("ids", e.IDs).Warn("No container has the volume mounted, and no Unmount came: its mount IDs are dropped, since the volume is removed")
	}
	if e.Formatting { // not worth finishing
		d.noteUnused(v, e.formatting(false))
	}
	if err := d.release(ctx, v); err != nil {
		return fmt.Errorf("%w: volume %q was not removed", err, v.name)
	}
	return nil
}
