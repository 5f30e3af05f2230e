package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Discard describes a volume that is to be removed.
type Discard struct {
	Name     string
	Node     providers.Node
	Progress volume.Progress
	// Release is called while the cloud says that this node holds the volume, first found so at that time. Without an error
	// the cloud is asked again.
	Release func(ctx context.Context, vol *providers.Volume, since time.Time) error
}

// AwaitFree returns the volume once no node holds it. A holder that is stopped or gone is taken over from, as Attach does.
// Errors: volume.Held, with the node that holds the volume; providers.ErrNotFound.
func (c *Controller) AwaitFree(ctx context.Context, want Discard) (*providers.Volume, error) {
	holder := holderWatch{since: time.Now()}
	retry := newBackoff()
	var step volume.Step
	begin := func(s volume.Step) { step = s; want.Progress.Step(s) }
	for {
		vol, err := c.Find(ctx, want.Name)
		switch {
		case err != nil:
			return nil, err
		case !vol.Held():
			return vol, nil
		case vol.HeldBy(want.Node.ID):
			begin(volume.Step{Phase: volume.Detaching})
			if err := want.Release(ctx, vol, holder.since); err != nil {
				return nil, err
			}
		default:
			taken, err := c.takeOver(ctx, vol, &holder, begin)
			if err != nil {
				return nil, err
			}
			// What this node has mounted since, it has released since.
			if !taken && holder.taken == "" && !c.catalog.changedLately(want.Name) {
				return nil, volume.Fail(volume.Held, "in use on node "+vol.Attachment.Node, step.Advice)
			}
		}
		if cause := waitFor(ctx, retry.Next()); cause != nil {
			return nil, fmt.Errorf("%s, %w", step.Words(), cause)
		}
	}
}

// Remove removes a volume that no node holds, and its disk as its reclaim policy says. step is told what it waits for.
func (c *Controller) Remove(ctx context.Context, vol *providers.Volume, step func(volume.Step)) error {
	log := c.log.WithFields(logrus.Fields{"volume": vol.Name, "id": vol.ID})
	reclaim := volume.SettingsOf(vol.Record).Reclaim
	switch reclaim {
	case volume.ReclaimRetain:
		if err := whileHeld(ctx, func() error { return c.cloud.forget(ctx, vol.ID) }); err != nil {
			return err
		}
		log.Infof("Volume forgotten; its disk is kept, and comes back with the option volume-id=%s", vol.ID)
		c.catalog.forget(vol.Name, vol.ID)
		return nil
	case volume.ReclaimDelete:
	case volume.ReclaimSnapshot:
		// The time makes it this attempt's own: the snapshot of an earlier one, whose delete has failed, may be old.
		spec := SnapshotSpec(vol, volume.TakenToRemove, time.Now().UTC().Format(time.RFC3339Nano))
		snapshot, err := c.TakeSnapshot(ctx, vol, spec)
		if err == nil {
			snapshot, err = c.AwaitSnapshot(ctx, snapshot, step)
		}
		if err != nil {
			return fmt.Errorf("%w: the volume is not removed, since its reclaim policy is to take a snapshot first", err)
		}
		log.WithField("snapshot", snapshot.ID).Infof("Snapshot taken; the volume comes back with the option snapshot=%s", snapshot.ID)
	}
	if err := c.awaitSnapshotsOf(ctx, vol, step); err != nil {
		return fmt.Errorf("%w: the volume is not removed, since snapshots of it may need it until they are complete", err)
	}
	if err := whileHeld(ctx, func() error { return c.cloud.delete(ctx, vol.ID) }); err != nil {
		return err
	}
	log.Info("Volume deleted")
	c.catalog.forget(vol.Name, vol.ID)
	return nil
}

// Retain records with the cloud that the disk is kept when the volume is removed.
func (c *Controller) Retain(ctx context.Context, vol *providers.Volume) error {
	if volume.SettingsOf(vol.Record).Reclaim == volume.ReclaimRetain {
		return nil
	}
	return c.Mark(ctx, vol, volume.KeyReclaim, string(volume.ReclaimRetain))
}

// Missing notes that the volume was to be removed and does not exist.
func (c *Controller) Missing(name string) { c.catalog.forget(name, "") }

// whileHeld makes a change of a volume that the cloud has just called free, again if the cloud then refuses it as held: one
// of the two answers was behind, if only for seconds.
func whileHeld(ctx context.Context, change func() error) error {
	retry := newBackoff()
	for begin := time.Now(); ; {
		err := change()
		if !errors.Is(err, providers.ErrHeld) || time.Since(begin) > providers.MaxStale || waitFor(ctx, retry.Next()) != nil {
			return err
		}
	}
}
