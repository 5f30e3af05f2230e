package driver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Garbage is a snapshot that nobody needs.
type Garbage struct {
	*Snapshot
	Why string // in words
}

// copyAge is how old a snapshot that was taken to copy a volume has to be to be garbage: the copy may still be going on.
const copyAge = withSnapshot + time.Hour

// Garbage returns snapshots of the cluster that nobody needs: those that have failed, those left over from a copy of a volume,
// and those that have expired by their schedules. With removed it returns those of schedules whose disks do not exist any more, too: they are
// the last copies of those disks. Snapshots that were taken by hand, or as the last state of a volume, are never among them.
func (d *Driver) Garbage(ctx context.Context, removed bool) ([]Garbage, error) {
	all, err := d.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	volumes, err := d.controller.ListWhole(ctx)
	if err != nil {
		return nil, volume.At(d.stopping(err), volume.Error{Op: volume.List})
	}
	exists, byName := make(map[string]*providers.Volume), make(map[string]bool)
	for _, vol := range volumes {
		exists[vol.ID], byName[vol.Name] = vol, true
	}
	kept := make(map[string]bool)
	if removed {
		if kept, err = d.keptDisks(ctx); err != nil {
			return nil, err
		}
	}
	expired := expiredOf(all, exists)
	var garbage []Garbage
	for _, s := range all {
		at, why := volume.DueAt(s.Record), ""
		switch {
		case s.State == providers.SnapshotFailed:
			why = "it has failed"
		case volume.IsToCopy(s.Record) && time.Since(s.CreatedAt) > copyAge:
			why = "it is left over from a copy of the volume"
		case at.IsZero():
		case kept[s.Volume]: // and may come back
		case exists[s.Volume] == nil && removed && byName[s.Name]:
			why = "its disk does not exist any more: a new volume has its name"
		case exists[s.Volume] == nil && removed:
			why = "its volume does not exist any more"
		case slices.Contains(expired[s.Volume], at):
			why = "it has expired by its schedule"
		}
		if why != "" {
			garbage = append(garbage, Garbage{s, why})
		}
	}
	return garbage, nil
}

// keptDisks returns, by id, the disks that hold the data of a volume and are no volumes now.
func (d *Driver) keptDisks(ctx context.Context) (map[string]bool, error) {
	all, err := d.Orphans(ctx)
	if err != nil && volume.CodeOf(err) != volume.Invalid { // this provider cannot tell
		return nil, err
	}
	kept := make(map[string]bool)
	for _, o := range all {
		if o.Kind != providers.OrphanUnfinished {
			kept[o.ID] = true
		}
	}
	return kept, nil
}

// expiredOf returns, by disk, when the snapshots were due that have expired by the schedules of these volumes.
func expiredOf(all []*Snapshot, volumes map[string]*providers.Volume) map[string][]time.Time {
	expired := make(map[string][]time.Time)
	for disk, taken := range ofSchedules(all, time.Now()) {
		if vol := volumes[disk]; vol != nil {
			if schedule := volume.ScheduleOf(vol.Record); schedule.Exists() {
				expired[disk] = schedule.Expired(complete(taken))
			}
		}
	}
	return expired
}

// Reason says for people why a snapshot was taken.
func Reason(s *Snapshot) string {
	if at := volume.DueAt(s.Record); !at.IsZero() {
		return fmt.Sprintf("by schedule, due %s", at.Format(time.RFC3339))
	}
	switch {
	case s.Record[volume.KeyTaken] == volume.TakenToRemove:
		return "before its volume was removed"
	case volume.IsToCopy(s.Record):
		return "to copy its volume"
	}
	return s.Record[volume.KeyTaken]
}
