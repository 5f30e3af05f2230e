package driver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

const (
	// scheduleEvery is the period in which schedules are looked at.
	scheduleEvery = 30 * time.Second
	// scheduleRetry is the longest between two attempts to take a snapshot that is due, and between two looks whether it is complete.
	scheduleRetry = 15 * time.Minute
	// lateAfter is when a snapshot counts as late.
	lateAfter = 5 * time.Minute
	// atOnce is how many volumes' snapshots are taken at once: many are due at the same time, and clouds limit the requests.
	atOnce = 4
)

// scheduled is the state of a disk's schedule, as this node knows it.
type scheduled struct {
	due    time.Time // the last time when a snapshot was due
	missed time.Time // the first since the latest complete one, as far as this node knows
	done   bool      // it is complete, and expired ones are deleted
	latest time.Time // for when the latest complete one was due; zero if none is known

	retry time.Time // not before
	wait  time.Duration
}

// overdue returns when the first snapshot since the latest complete one was due, zero if none was.
func (s *scheduled) overdue() time.Time {
	switch {
	case s.missed.After(s.latest):
		return s.missed
	case s.due.After(s.latest):
		return s.due
	}
	return time.Time{}
}

// dueSnapshot is a volume of which a snapshot is due.
type dueSnapshot struct {
	vol      *providers.Volume
	schedule volume.Schedule
	*scheduled
}

// scheduleLoop takes the snapshots that are due of the volumes that this node has, and deletes those that are not kept any more. Which
// ones there are the cloud tells: another node may have had the volume before, and whoever has it takes what was missed.
func (d *Driver) scheduleLoop() {
	if !d.controller.HasSnapshots() {
		return
	}
	for pause.For(d.ctx, scheduleEvery) == nil {
		d.takeDue(d.ctx, time.Now())
	}
}

func (d *Driver) takeDue(ctx context.Context, now time.Time) {
	due := d.dueSnapshots(ctx, now)
	if len(due) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	all, err := d.controller.Snapshots(ctx)
	taken := ofSchedules(all, now)
	var volumes errgroup.Group
	volumes.SetLimit(atOnce)
	for _, v := range due {
		volumes.Go(func() error {
			done, err := false, err
			if err == nil {
				done, err = d.keepSchedule(ctx, v, taken[v.vol.ID], now)
			}
			if err != nil && ctx.Err() == nil {
				d.log.WithField("volume", v.vol.Name).WithField("id", v.vol.ID).WithError(err).Warnf("The snapshot that was due at %s is not taken yet, or old ones are not deleted", v.due.Format(time.RFC3339))
				d.found(v.vol.Name, volume.NoSnapshot)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			v.done, v.wait = done, min(max(2*v.wait, scheduleEvery), scheduleRetry)
			v.retry = now.Add(v.wait)
			return nil
		})
	}
	_ = volumes.Wait()
}

// dueSnapshots returns the volumes of this node whose schedules have a snapshot to take or to delete.
func (d *Driver) dueSnapshots(ctx context.Context, now time.Time) (due []dueSnapshot) {
	here := make(map[string]bool)
	names := slices.DeleteFunc(d.held(), func(name string) bool { h := d.known(name); return h == nil || !h.Seen() || h.IsTaken() })
	if slices.ContainsFunc(names, func(name string) bool { return d.controller.Last(name) == nil }) { // after a restart
		node, err := d.thisNode(ctx)
		if err == nil {
			_, err = d.controller.ListHeld(ctx, node.ID)
		}
		if err != nil {
			return nil // the next look asks again
		}
	}
	for _, name := range names {
		h, vol := d.known(name), d.controller.Last(name)
		if h == nil || vol == nil {
			continue
		}
		schedule := volume.ScheduleOf(vol.Record)
		at := schedule.Last(now)
		if e := h.Entry(); at.Before(vol.CreatedAt) || at.Before(volume.Since(vol.Record)) || at.IsZero() || e == nil || e.Volume != vol.ID {
			continue
		}
		here[vol.ID] = true
		if s := d.schedule(vol.ID, at); !s.done && !now.Before(s.retry) {
			due = append(due, dueSnapshot{vol, schedule, s})
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for disk := range d.scheduled {
		if !here[disk] { // whoever has it next asks the cloud
			delete(d.scheduled, disk)
		}
	}
	return due
}

// schedule returns the state of the disk's schedule, a new one if another snapshot has become due.
func (d *Driver) schedule(disk string, due time.Time) *scheduled {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.scheduled[disk]
	if s == nil {
		s = &scheduled{}
		d.scheduled[disk] = s
	}
	if s.due.Before(due) {
		missed := s.overdue()
		if missed.IsZero() {
			missed = due
		}
		*s = scheduled{due: due, missed: missed, latest: s.latest}
	}
	return s
}

// ofSchedules returns, by disk, the snapshots that schedules have taken and that have not failed.
func ofSchedules(all []*Snapshot, now time.Time) map[string][]*Snapshot {
	taken := make(map[string][]*Snapshot)
	for _, s := range all {
		at := volume.DueAt(s.Record)
		// One that is due in the future was taken by a node whose clock was wrong, and would stand for all until then.
		if at.IsZero() || at.After(now) || s.State == providers.SnapshotFailed {
			continue
		}
		taken[s.Volume] = append(taken[s.Volume], s)
	}
	return taken
}

// complete returns the times at which the complete ones were due.
func complete(taken []*Snapshot) (due []time.Time) {
	for _, s := range taken {
		if s.State == providers.SnapshotComplete {
			due = append(due, volume.DueAt(s.Record))
		}
	}
	return due
}

// keepSchedule takes the volume's snapshot that is due, unless it is among those that its schedule has taken. Once it is complete, those
// that have expired are deleted, and it returns true.
func (d *Driver) keepSchedule(ctx context.Context, v dueSnapshot, all []*Snapshot, now time.Time) (done bool, err error) {
	taken := complete(all)
	begun := slices.ContainsFunc(all, func(s *Snapshot) bool { return !volume.DueAt(s.Record).Before(v.due) })
	d.noteLatest(v, taken)
	switch {
	case !begun:
		err := d.takeScheduled(ctx, v, now)
		if err == nil {
			v.wait = 0 // from here on it counts how long the cloud is copying
		}
		return false, err
	case latest(taken).Before(v.due):
		return false, nil // the cloud is still copying
	}
	expired := v.schedule.Expired(taken)
	for _, s := range all {
		at := volume.DueAt(s.Record)
		if s.State != providers.SnapshotComplete || !slices.Contains(expired, at) {
			continue
		}
		if err := d.controller.DeleteSnapshot(ctx, s.ID); err != nil {
			return false, fmt.Errorf("%w: snapshot %s has expired, and is not deleted yet", err, s.ID)
		}
		d.log.WithField("volume", v.vol.Name).WithField("snapshot", s.ID).Infof("Snapshot of %s deleted: it has expired", at.Format(time.RFC3339))
	}
	return true, nil
}

func (d *Driver) takeScheduled(ctx context.Context, v dueSnapshot, now time.Time) error {
	taken := false
	_, err := d.do(ctx, v.vol.Name, job{op: volume.Copy, phase: volume.TakingSnapshot, work: func(ctx context.Context, h *handle) error {
		if e := h.Entry(); e == nil || e.Volume != v.vol.ID {
			return nil // it is another node's turn
		}
		_, err := d.copy(ctx, h, volume.TakenAt(v.due), "by schedule")
		taken = err == nil
		return err
	}})
	if late := now.Sub(v.due); err == nil && taken && late > lateAfter {
		d.log.WithField("volume", v.vol.Name).Warnf("The snapshot that was due at %s is taken %s late: no node had the volume then, or it could not be taken", v.due.Format(time.RFC3339), late.Round(time.Second))
		d.found(v.vol.Name, volume.LateSnapshot)
	}
	return err
}

func latest(times []time.Time) (last time.Time) {
	for _, at := range times {
		if at.After(last) {
			last = at
		}
	}
	return last
}

func (d *Driver) noteLatest(v dueSnapshot, taken []time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.latest = latest(taken)
}

// scheduleOf returns when the latest complete scheduled snapshot of the disk was due, and when the first after it was due.
func (d *Driver) scheduleOf(disk string) (last, due time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.scheduled[disk]
	if s == nil {
		return last, due
	}
	return s.latest, s.overdue()
}
