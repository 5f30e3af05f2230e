package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Create makes the volume, or adopts the disk that the option volume-id names. Nothing is made unless every option is
// right, and under no name that Docker could not address. A volume that exists already, made by an earlier call or by another
// node, is success if it is what was asked for.
func (d *Driver) Create(ctx context.Context, name string, options map[string]string) error {
	return d.createAs(ctx, name, options, nil)
}

// createAs is Create with entries of the Record that no option sets.
func (d *Driver) createAs(ctx context.Context, name string, options map[string]string, record providers.Record) error {
	refuse := func(cause error, advice string) error {
		return &volume.Error{Code: volume.Invalid, Op: volume.Create, Volume: name, Cause: cause, Advice: advice}
	}
	switch {
	case len(name) > longestName:
		return refuse(fmt.Errorf("the name has %d bytes, where at most %d fit", len(name), longestName), "choose a shorter name")
	case !printable(name):
		return refuse(fmt.Errorf("the name %q has characters that cannot be printed", name), "choose another name")
	}
	r, err := d.parseOptions(name, options)
	if err != nil {
		return refuse(err, "")
	}
	maps.Copy(r.Spec.Record, record)
	r.Check = func(ctx context.Context) error { return checkFormat(ctx, r.Spec) }
	_, err = d.do(ctx, name, job{
		op: volume.Create, phase: volume.Creating, limit: withSnapshot,
		work: func(ctx context.Context, h *handle) error { return d.create(ctx, h, r) },
	})
	return err
}

func (d *Driver) create(ctx context.Context, h *handle, r controller.Request) error {
	r.Copy = func(ctx context.Context) (*providers.Snapshot, bool, error) {
		vol, err := d.controller.Find(ctx, r.From)
		if err != nil {
			return nil, false, err
		}
		if !volume.SettingsOf(vol.Record).Formatted { // and a copy is never formatted
			return nil, false, volume.Fail(volume.Invalid, "it has never been mounted, so there is nothing to copy", "create a new volume")
		}
		return d.snapshotToCopy(ctx, h, vol)
	}
	vol, created, err := d.controller.Create(ctx, r)
	if err == nil && created {
		h.Log().WithField("id", vol.ID).WithField("size", volume.FormatSize(vol.Size)).Info("Volume created")
	}
	return err
}

// resumeAge is how old a complete snapshot to copy a volume may be for the next life of the plugin to go on with it.
const resumeAge = 10 * time.Minute

// snapshotToCopy takes a snapshot of the volume to make another of it, or goes on with the one that is being taken for that, by
// whichever node, or that this plugin was waiting for when it was restarted. Any other is not gone on with: what it holds may be old.
// The snapshot is shared if another node has taken it, which may be waiting for it, too.
func (d *Driver) snapshotToCopy(ctx context.Context, h *handle, from *providers.Volume) (s *Snapshot, shared bool, err error) {
	here, err := d.thisNode(ctx)
	if err != nil {
		return nil, false, err
	}
	reason := volume.ToCopy(here.ID, h.Name)
	if d.controller.HasSnapshots() {
		all, err := d.controller.Snapshots(ctx)
		if err != nil {
			return nil, false, err
		}
		for _, s := range slices.Backward(all) {
			ours := s.Record[volume.KeyTaken] == reason
			taking := s.State == providers.SnapshotCreating && volume.IsToMake(s.Record, h.Name)
			taken := s.State == providers.SnapshotComplete && ours && s.CreatedAt.Before(d.started) && time.Since(s.CreatedAt) < resumeAge
			if s.Volume == from.ID && (taking || taken) {
				h.Log().WithField("snapshot", s.ID).WithField("since", s.CreatedAt.Format(time.RFC3339)).Info("Going on with the snapshot that was begun for this volume")
				s, err := d.controller.AwaitSnapshot(ctx, s, h.Step)
				return s, !ours, err
			}
		}
	}
	// The time makes it this attempt's own.
	s, _, err = d.takeSnapshot(ctx, from.Name, reason, h.Name+", "+time.Now().UTC().Format(time.RFC3339Nano), h.Step)
	return s, false, err
}

// checkFormat has mkfs check the operator's options for it. Where there is no such program, another node may have it.
func checkFormat(ctx context.Context, spec providers.Spec) error {
	set := volume.SettingsOf(spec.Record)
	if len(set.MkfsOptions) == 0 {
		return nil
	}
	err := mount.CheckFormat(ctx, mount.FormatSpec{FSType: set.FSType, Options: set.MkfsOptions, Size: spec.Size})
	if errors.Is(err, mount.ErrNoTool) {
		return nil
	}
	return err
}
