package driver

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// Reschedule changes when snapshots of the volume are taken and which are kept, as the options snapshot-schedule and snapshot-keep say. One
// that is empty stays as it is; volume.NoSchedule for when ends the schedule and keeps the snapshots. The schedule is kept with the volume
// in the cloud. The answer says what it is now.
// Errors: volume.Invalid and nothing was changed; volume.Held if another node has the volume, and would not learn of it.
func (d *Driver) Reschedule(ctx context.Context, name, when, keep string) (outcome string, err error) {
	about := volume.Error{Op: volume.Modify, Volume: name}
	if !d.controller.HasSnapshots() {
		return "", volume.At(volume.Fail(volume.Invalid, "this provider has no snapshots", ""), about)
	}
	if when != "" && when != volume.NoSchedule {
		if err := checkSchedule(when, cmp.Or(keep, volume.DefaultKeep)); err != nil {
			return "", volume.At(err, about)
		}
	}
	here, err := d.thisNode(ctx)
	if err != nil {
		return "", volume.At(err, about)
	}
	_, err = d.do(ctx, name, job{op: volume.Modify, phase: volume.Modifying, work: func(ctx context.Context, h *handle) error {
		vol, err := d.controller.Find(ctx, h.Name)
		switch {
		case err != nil:
			return err
		case vol.Held() && !vol.HeldBy(here.ID):
			return volume.Fail(volume.Held, "in use on node "+vol.Attachment.Node+", which takes its snapshots", "run the command there")
		}
		if outcome, err = d.reschedule(ctx, vol, when, keep); err == nil && !vol.Held() {
			err = d.checkStillFree(ctx, h.Name, here)
		}
		return err
	}})
	return outcome, err
}

func (d *Driver) reschedule(ctx context.Context, vol *providers.Volume, when, keep string) (outcome string, err error) {
	had := volume.ScheduleOf(vol.Record).Exists()
	if when == volume.NoSchedule {
		if keep != "" {
			return "", volume.Fail(volume.Invalid, "without a schedule nothing expires", "leave snapshot-keep out")
		}
		if had {
			err = d.controller.Mark(ctx, vol, volume.KeySchedule, volume.NoSchedule)
		}
		return "no more snapshots are taken by schedule; those that were stay", err
	}
	if when == "" && had {
		when = vol.Record[volume.KeySchedule]
	}
	keep = cmp.Or(keep, vol.Record[volume.KeyKeep], volume.DefaultKeep)
	if err := checkSchedule(when, keep); err != nil {
		return "", err
	}
	changes := []struct{ key, value string }{{volume.KeyKeep, keep}, {volume.KeySchedule, when}}
	if when != vol.Record[volume.KeySchedule] { // first: what was due before is not taken
		changes = append([]struct{ key, value string }{{volume.KeySince, time.Now().UTC().Format(time.RFC3339)}}, changes...)
	}
	for _, c := range changes {
		if err := d.controller.Mark(ctx, vol, c.key, c.value); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("snapshots are taken %s, in UTC, and of these are kept %s", when, keep), nil
}

// checkStillFree returns an error if another node has mounted the volume without having seen what was just changed: one that has asked
// for the volume does not ask again right before it attaches it.
func (d *Driver) checkStillFree(ctx context.Context, name string, here Node) error {
	if err := pause.For(ctx, controller.FreeTTL); err != nil {
		return err
	}
	vol, err := d.controller.Find(ctx, name)
	if err == nil && vol.Held() && !vol.HeldBy(here.ID) {
		return volume.Fail(volume.Held, "node "+vol.Attachment.Node+" has mounted the volume while its schedule was changed, and may not know the new one", "run the command there, too")
	}
	return err
}

// checkSchedule refuses what the create options would.
func checkSchedule(when, keep string) error {
	if len(when) > longestEntry || len(keep) > longestEntry || !printable(when+keep) {
		return volume.Fail(volume.Invalid, fmt.Sprintf("a schedule has up to %d printable characters", longestEntry), "")
	}
	if _, err := volume.ParseSchedule(when, keep); err != nil {
		return &volume.Error{Code: volume.Invalid, Cause: err}
	}
	return nil
}
