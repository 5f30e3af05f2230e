package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// Snapshot is a copy of a volume at one instant.
type Snapshot = providers.Snapshot

const (
	// freezeLimit is how long a file system is frozen at most for a snapshot. What has waited is then to be synced, which takes the rest of
	// the second that nobody is to wait longer than.
	freezeLimit = 700 * time.Millisecond
	// turnLimit is how long a snapshot of a volume that is mounted here may delay its mounts and unmounts: a cloud may take an hour to
	// answer, or until the snapshot is complete.
	turnLimit = 30 * time.Second
)

// TakeSnapshot takes a snapshot of the volume and returns it once it is complete. Calls with the same key make one snapshot. If the
// volume is mounted on this node, its file system is frozen for the instant of the copy. step is told the progress; the answer describes
// the copy.
// Errors: volume.Held or volume.InUse if this cloud cannot copy a volume in use.
func (d *Driver) TakeSnapshot(ctx context.Context, name, key string, step func(volume.Step)) (s *Snapshot, outcome string, err error) {
	return d.takeSnapshot(ctx, name, volume.TakenByHand, key, step)
}

func (d *Driver) takeSnapshot(ctx context.Context, name, reason, key string, step func(volume.Step)) (s *Snapshot, outcome string, err error) {
	step(volume.Step{Phase: volume.TakingSnapshot})
	var taken copied
	for begun, overran := time.Now(), true; overran; {
		_, err = d.do(ctx, name, job{op: volume.Copy, phase: volume.TakingSnapshot, work: func(ctx context.Context, h *handle) error {
			result, err := d.copy(ctx, h, reason, key)
			if errors.Is(err, providers.ErrHeld) && d.releaseIfUnused(ctx, h) == nil { // its idle TTL is not over
				result, err = d.copy(ctx, h, reason, key)
			}
			if overran = errors.Is(err, errTurn); err == nil {
				taken = result
			}
			return err
		}})
		if err != nil && (ctx.Err() != nil || !overran || time.Since(begun) > workTimeout) {
			return nil, "", err
		}
	}
	// The volume's gate is not held: the cloud may take an hour, and the instant has passed.
	s, err = d.controller.AwaitSnapshot(ctx, taken.Snapshot, step)
	if err != nil {
		return nil, "", volume.At(d.stopping(err), volume.Error{Op: volume.Copy, Volume: name})
	}
	return s, fmt.Sprintf("snapshot %s of %s%s", s.ID, name, taken.like), nil
}

// errTurn is the error of a snapshot that was not taken within turnLimit. The next attempt continues it.
var errTurn = fmt.Errorf("not taken within %s", turnLimit)

// copied is a snapshot and what it is like, for people.
type copied struct {
	*Snapshot
	like string
}

// copy takes a snapshot, which may not be complete when it is returned.
func (d *Driver) copy(ctx context.Context, h *handle, reason, key string) (copied, error) {
	vol, err := d.controller.Find(ctx, h.Name)
	if err != nil {
		return copied{}, err
	}
	spec := controller.SnapshotSpec(vol, reason, key)
	like := ""
	if vol.Held() {
		like = ", as after a power failure: its file system repairs itself when it is mounted"
	}
	turn, cancel := ctx, func() {}
	if e := h.Entry(); e != nil && e.Volume == vol.ID && h.IsStaged(ctx) {
		turn, cancel = context.WithTimeoutCause(ctx, turnLimit, errTurn)
		spec.Hold = func(ctx context.Context, take func(ctx context.Context) error) error {
			begun := time.Now()
			held, err := h.Frozen(ctx, freezeLimit, take)
			switch {
			case errors.Is(err, node.ErrNotFrozen):
				h.Log().WithError(err).Warn("The file system could not be frozen for the snapshot")
				return take(ctx)
			case err == nil && held:
				like = fmt.Sprintf(", whose file system was frozen for %s", time.Since(begun).Round(time.Millisecond))
			}
			return err
		}
	}
	defer cancel()
	s, err := d.controller.TakeSnapshot(turn, vol, spec)
	if err != nil && ctx.Err() == nil && turn.Err() != nil {
		err = fmt.Errorf("%w: %w", errTurn, err)
	}
	if err != nil {
		return copied{}, err
	}
	h.Log().WithField("id", vol.ID).WithField("snapshot", s.ID).Infof("Snapshot taken%s", like)
	return copied{s, like}, nil
}

// Snapshots returns all snapshots of the cluster, the oldest first.
func (d *Driver) Snapshots(ctx context.Context) ([]*Snapshot, error) {
	all, err := d.controller.Snapshots(ctx)
	if err != nil {
		return nil, volume.At(d.stopping(err), volume.Error{Op: volume.List})
	}
	return all, nil
}

// DeleteSnapshot destroys a snapshot of the cluster. One that is not there is success.
func (d *Driver) DeleteSnapshot(ctx context.Context, id string) error {
	return volume.At(d.stopping(d.controller.DeleteSnapshot(ctx, id)), volume.Error{Op: volume.Remove, ID: id})
}

// Rollback replaces the disk of an unused volume by one that is made from a snapshot. disk is the one to be replaced: it keeps its data
// and becomes the volume KeptAs. Rollback can be called again, and continues where an earlier call has stopped.
func (d *Driver) Rollback(ctx context.Context, name, disk, snapshot string, step func(volume.Step)) (outcome string, err error) {
	if kept := KeptAs(name, disk); len(kept) > longestName {
		return "", volume.At(volume.Fail(volume.Invalid, fmt.Sprintf("the disk that is replaced would become volume %q, a name of %d bytes, where at most %d fit", kept, len(kept), longestName),
			"make a new volume from the snapshot instead"), volume.Error{Op: volume.Restore, Volume: name})
	}
	step(volume.Step{Phase: volume.Restoring})
	_, err = d.do(ctx, name, job{
		op: volume.Restore, phase: volume.Restoring, keep: idleTTL,
		work: func(ctx context.Context, h *handle) error { return d.rollback(ctx, h, disk, snapshot) },
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("as in snapshot %s; what it was before is volume %s, until you remove that", snapshot, KeptAs(name, disk)), nil
}

const longestName = 255 // bytes

// KeptAs is the name of the volume that the replaced disk of a volume becomes.
func KeptAs(name, disk string) string {
	const digits = 8
	last := strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' {
			return c
		}
		return -1
	}, strings.ToLower(disk))
	return name + ".before-" + last[max(0, len(last)-digits):]
}

// rollback makes the new disk under a name of its own and then exchanges the names. The old disk's Record tells which disk is to have
// its name, since between two names a disk has none.
func (d *Driver) rollback(ctx context.Context, h *handle, disk, snapshot string) error {
	kept, coming := KeptAs(h.Name, disk), h.Name+".restoring"
	vol, err := d.controller.Find(ctx, h.Name)
	switch {
	case err == nil && vol.ID == disk:
		if vol, err = d.free(ctx, h); err != nil {
			return err
		}
		h.Step(volume.Step{Phase: volume.Restoring})
		copied, err := d.restore(ctx, vol, coming, snapshot)
		if err != nil {
			return err
		}
		if err := d.controller.Mark(ctx, vol, volume.KeyReplacedBy, copied.ID); err != nil {
			return err
		}
	case err == nil:
		if old, err := d.controller.Find(ctx, kept); err == nil && old.ID == disk && old.Record[volume.KeyReplacedBy] == vol.ID {
			return nil // done before
		}
		return volume.Fail(volume.Conflict, fmt.Sprintf("the volume is disk %s now, and not %s, whose place a copy of the snapshot was to take", vol.ID, disk), "see what it holds, and begin again")
	case !errors.Is(err, providers.ErrNotFound):
		return err
	default:
		if begun, e := d.exchanging(ctx, disk, kept, coming); e != nil || !begun {
			return cmp.Or(e, err)
		}
	}
	// From the first exchange of names to the second nobody has the volume's name, so a cloud that does not answer is asked again.
	for retry := (pause.Backoff{Least: time.Second, Most: time.Minute}); ; {
		err := d.exchange(ctx, h.Name, disk, kept, coming)
		if err == nil {
			return nil
		}
		mayPass := slices.Contains([]volume.Code{volume.Unavailable, volume.Busy, volume.Failed}, volume.CodeOf(err))
		if !mayPass || retry.Wait(ctx) != nil {
			return err
		}
		h.Log().WithError(err).Warn("The names of two disks are not exchanged yet")
	}
}

// exchanging tells whether an earlier call has begun to give the disk's name to the one that replaces it.
func (d *Driver) exchanging(ctx context.Context, disk, kept, coming string) (begun bool, err error) {
	vol, err := d.controller.Find(ctx, coming)
	if err == nil {
		return vol.Record[volume.KeyReplaces] == disk, nil
	}
	if errors.Is(err, providers.ErrNotFound) { // it has no name at this moment, or no such volume was ever made
		vol, err = d.controller.Find(ctx, kept)
	}
	switch {
	case err == nil:
		return vol.ID == disk, nil
	case errors.Is(err, providers.ErrNotFound):
		return false, nil
	}
	return false, err
}

// exchange gives the disk another name, and its name to the disk that replaces it.
func (d *Driver) exchange(ctx context.Context, name, disk, kept, coming string) error {
	if err := d.controller.Rename(ctx, disk, name, kept); err != nil {
		return err
	}
	old, err := d.controller.Find(ctx, kept)
	if err != nil {
		return err
	}
	return d.controller.Rename(ctx, old.Record[volume.KeyReplacedBy], coming, name)
}

// restore makes a disk of that name from the snapshot, as large as the volume if that is larger, and of its kind.
func (d *Driver) restore(ctx context.Context, like *providers.Volume, name, snapshot string) (*providers.Volume, error) {
	s, err := d.controller.FindSnapshot(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	// Only what an earlier call has made for this is taken for the copy: any other volume of the name may hold more than the snapshot.
	left, err := d.controller.Find(ctx, name)
	switch {
	case errors.Is(err, providers.ErrNotFound):
	case err != nil:
		return nil, err
	case left.Record[volume.KeyReplaces] != like.ID || left.Snapshot != snapshot || left.Held():
		return nil, volume.At(volume.Fail(volume.Conflict, "a volume has the name that the copy of the snapshot needs until it is renamed", "see what it holds, and remove it"), volume.Error{Volume: name})
	}
	tags, err := d.controller.Tags(ctx, like)
	if err != nil {
		return nil, fmt.Errorf("%w: the tags of disk %s, which the one that replaces it gets, are not known", err, like.ID)
	}
	spec := providers.Spec{Name: name, Size: max(like.Size, s.Size), Snapshot: snapshot, Zone: like.Zone, Type: like.Details["type"], Tags: tags, Record: likeVolume(like)}
	exact := spec
	exact.IOPS, _ = strconv.Atoi(like.Details["iops"]) // 0 where there is none
	exact.Throughput, _ = strconv.Atoi(like.Details["throughput"])
	own := providers.Record{volume.KeyReplaces: like.ID}
	vol, _, err := d.controller.Create(ctx, controller.Request{Spec: exact, Record: own})
	if errors.Is(err, providers.ErrInvalid) { // clouds show values for types of disk with which they do not accept them
		vol, _, err = d.controller.Create(ctx, controller.Request{Spec: spec, Record: own})
	}
	return vol, err
}

// likeVolume is what a disk's record says in place of its snapshot's, so that it is that volume's.
func likeVolume(vol *providers.Volume) providers.Record {
	record := providers.Record{volume.KeyFormatted: "before", volume.KeyReplaces: vol.ID}
	set := volume.SettingsOf(vol.Record)
	record[volume.KeyReclaim] = string(set.Reclaim)
	record[volume.KeySchedule] = cmp.Or(vol.Record[volume.KeySchedule], volume.NoSchedule)
	record[volume.KeyKeep] = cmp.Or(vol.Record[volume.KeyKeep], volume.DefaultKeep)
	if tags := vol.Record[volume.KeyTags]; tags != "" {
		record[volume.KeyTags] = tags
	}
	return record
}
