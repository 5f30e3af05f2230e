package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// SnapshotSpec is a snapshot of the volume that is taken for a reason. Calls with the same reason and key make one.
func SnapshotSpec(vol *providers.Volume, reason, key string) providers.SnapshotSpec {
	return providers.SnapshotSpec{
		Description: fmt.Sprintf("blockvol: volume %s (%s), taken %s (%s)", vol.Name, vol.ID, reason, key),
		Record:      providers.Record{volume.KeyTaken: reason},
	}
}

// TakeSnapshot takes a snapshot of the volume. It may not be complete when it is returned.
func (c *Controller) TakeSnapshot(ctx context.Context, vol *providers.Volume, spec providers.SnapshotSpec) (*providers.Snapshot, error) {
	return c.cloud.snapshot(ctx, vol.ID, spec)
}

// AwaitSnapshot returns the snapshot once it is complete.
func (c *Controller) AwaitSnapshot(ctx context.Context, s *providers.Snapshot, step func(volume.Step)) (*providers.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, SnapshotTimeout)
	defer cancel()
	retry := newBackoff()
	for begun := time.Now(); s.State != providers.SnapshotComplete; {
		if s.State == providers.SnapshotFailed {
			return nil, volume.Fail(volume.Failed, fmt.Sprintf("the cloud says that snapshot %s has failed: %q", s.ID, s.Detail), "take another")
		}
		waiting := volume.Step{Phase: volume.WaitingForSnapshot}
		if s.Detail != "" {
			waiting.Detail = fmt.Sprintf("%s %s (%s so far)", waiting.Words(), s.ID, s.Detail)
		}
		step(waiting)
		if err := waitFor(ctx, retry.Next()); err != nil {
			return nil, fmt.Errorf("%w: snapshot %s is not complete yet", err, s.ID)
		}
		now, err := c.cloud.findSnapshot(ctx, s.ID)
		switch {
		case err == nil:
			s = now
		case !errors.Is(err, providers.ErrNotFound) || time.Since(begun) > providers.MaxStale:
			return nil, err
		}
	}
	return s, nil
}

// awaitSnapshotsOf returns when the cloud copies no snapshot of the volume any more, whoever has taken it.
func (c *Controller) awaitSnapshotsOf(ctx context.Context, vol *providers.Volume, step func(volume.Step)) error {
	if !c.HasSnapshots() {
		return nil
	}
	all, err := c.Snapshots(ctx)
	if errors.Is(err, providers.ErrDenied) { // with such credentials there are none: taking one needs to list them
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Volume == vol.ID && s.State == providers.SnapshotCreating {
			if _, err := c.AwaitSnapshot(ctx, s, step); err != nil && !errors.Is(err, providers.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// FindSnapshot returns a snapshot of the cluster. Errors: providers.ErrNotFound.
func (c *Controller) FindSnapshot(ctx context.Context, id string) (*providers.Snapshot, error) {
	return c.cloud.findSnapshot(ctx, id)
}

// Tags returns the operator's own tags of a volume, none if the provider does not tell.
func (c *Controller) Tags(ctx context.Context, vol *providers.Volume) (map[string]string, error) {
	reader, can := c.cloud.provider.(providers.TagReader)
	if !can {
		return nil, nil
	}
	return within(ctx, queryTimeout, func(ctx context.Context) (map[string]string, error) { return reader.Tags(ctx, vol.ID) })
}

// Snapshots returns all snapshots of the cluster, the oldest first. Those that cannot be read are not among them.
func (c *Controller) Snapshots(ctx context.Context) ([]*providers.Snapshot, error) {
	all, err := c.cloud.snapshots(ctx)
	if err != nil && all != nil {
		c.log.WithError(err).Error("Some snapshots cannot be read and are missing from the list")
		err = nil
	}
	return all, err
}

// DeleteSnapshot destroys a snapshot. One that is not there is success.
func (c *Controller) DeleteSnapshot(ctx context.Context, id string) error {
	return c.cloud.deleteSnapshot(ctx, id)
}

// Rename gives the disk of a volume that no node holds another name. It can be called again until it has succeeded.
func (c *Controller) Rename(ctx context.Context, disk, from, to string) error {
	vol, err := c.Find(ctx, to)
	switch {
	case err == nil && vol.ID == disk:
		return nil
	case err == nil:
		return volume.Fail(volume.Conflict, fmt.Sprintf("there is a volume %q already, which is disk %s", to, vol.ID), "remove it, or give it another name")
	case !errors.Is(err, providers.ErrNotFound):
		return err
	}
	vol, err = c.Find(ctx, from)
	switch {
	case err == nil && vol.ID == disk:
		if err := whileHeld(ctx, func() error { return c.cloud.forget(ctx, disk) }); err != nil {
			return err
		}
		c.catalog.forget(from, disk)
	case err != nil && !errors.Is(err, providers.ErrNotFound):
		return err
	}
	vol, err = c.cloud.adopt(ctx, disk, providers.Spec{Name: to})
	if err != nil {
		return fmt.Errorf("%w: disk %s, which was volume %q, has no name now, and is to become %q", err, disk, from, to)
	}
	c.catalog.put(vol)
	return nil
}
