package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// straysEvery is how often the cloud is asked for volumes that this node holds unknowingly, suspectedEvery how often if there
// may be one.
const straysEvery, suspectedEvery = 6 * time.Hour, 10 * time.Minute

// absence is a disk that this node may hold though its device is not here.
type absence struct {
	id, serial  string
	node        string    // this node's id, if held
	held        bool      // the cloud says that this node holds it; otherwise an attach was given up, and may take effect yet
	settled     bool      // it was reported, or the cloud was asked again about the attach
	since, last time.Time // when that was found first, and last
}

// reportAbsent returns the error for a disk that the cloud says this node holds, and that is none of its doing. It may be
// another machine's, in use there, which runs with the same id. It is logged once, and shown in the volume's Status.
func (d *Driver) reportAbsent(vol *providers.Volume) error {
	err := absentError(vol)
	if !d.noteAbsent(vol, true).settled {
		d.log.WithField("volume", vol.Name).WithField("id", vol.ID).WithError(err).Error("A disk that this node is said to hold is left attached")
		d.found(vol.Name, volume.AbsentDisk)
	}
	return err
}

// noteAbsent takes in that the cloud says that this node holds the volume, and that its device is not here. It returns what was
// known of that before.
func (d *Driver) noteAbsent(vol *providers.Volume, report bool) absence {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	before := d.absent[vol.Name]
	if !before.held || before.id != vol.ID {
		before = absence{id: vol.ID, serial: vol.Serial, held: true, since: now}
	}
	after := before
	after.node, after.last, after.settled = vol.Attachment.Node, now, before.settled || report
	d.absent[vol.Name] = after
	return before
}

func absentError(vol *providers.Volume) error {
	return volume.Fail(volume.WrongDisk,
		fmt.Sprintf("the cloud says that node %s holds disk %s, which is this node's id, but this boot of it has not seen the disk's device: it is not detached", vol.Attachment.Node, vol.ID),
		"see whether another machine runs with this node's id, and correct that; if none does, detach the disk in the cloud")
}

// isAbsent tells whether it was reported that the cloud says that this node holds the volume, whose device is not here.
func (d *Driver) isAbsent(vol *providers.Volume) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.absent[vol.Name]
	return a.held && a.settled && a.id == vol.ID && vol.HeldBy(a.node)
}

// mayComeLate takes in that an attach was given up: it may take effect yet.
func (d *Driver) mayComeLate(e *node.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.absent[e.Name] = absence{id: e.Volume, serial: e.Serial, since: time.Now()}
}

// mayHaveStrays tells whether it is time to search for strays, since the device of a disk that was absent has come, or since
// one has been absent for long. The last search was that long ago.
func (d *Driver) mayHaveStrays(ctx context.Context, searched time.Duration) bool {
	d.mu.Lock()
	absent := maps.Clone(d.absent)
	d.mu.Unlock()
	may := false
	for name, a := range absent {
		if h := d.known(name); h == nil || h.Entry() == nil { // else the entry tells
			wait := suspectedEvery
			switch {
			case a.held && !a.settled:
				wait = providers.MaxStale
			case !a.held && a.settled:
				wait = straysEvery
			}
			may = may || min(searched, time.Since(a.since)) >= wait || d.node.HasDevice(ctx, a.serial)
		}
	}
	return may
}

// forgetAbsent drops what a search for strays, begun at that time, has settled.
func (d *Driver) forgetAbsent(begun time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, a := range d.absent {
		switch age := begun.Sub(a.since); {
		case a.held && a.last.Before(begun), age >= straysEvery && !a.held:
			delete(d.absent, name)
		case age >= suspectedEvery && !a.held:
			a.settled = true // only its device is watched for
			d.absent[name] = a
		}
	}
}

// findStrays searches for volumes that the cloud says this node holds and the journal does not know: of a journal that was
// lost, or of an attach that took effect after it was given up. Those whose devices are here are noted, and so released if
// nobody uses them. The others are reported.
func (d *Driver) findStrays(ctx context.Context) (done bool) {
	begun := time.Now()
	here, err := d.thisNode(ctx)
	if err != nil {
		d.log.WithError(err).Warn("Which node this is cannot be told yet")
		return false
	}
	held, err := d.controller.ListHeld(ctx, here.ID)
	if err == nil {
		err = d.clearPaths(ctx, here.ID)
	}
	if err != nil {
		d.log.WithError(err).Warn("Which volumes this node holds cannot be told yet")
		return false
	}
	done = true
	d.controller.ResumeFences(ctx, here.ID, held)
	ids := make(map[string]bool, len(held))
	for _, vol := range held {
		ids[vol.ID] = true
		d.attempt(vol.Name, volume.Reconciling, func(h *handle) { // a call that has it will note it
			if h.Entry() == nil {
				done = d.noteStray(ctx, h, vol) && done
				h.keep = idleTTL
			}
		})
	}
	d.doubtAbsent(ids, begun)
	if done {
		d.forgetAbsent(begun)
	}
	return done
}

// clearPaths clears the paths of all volumes that this node does not hold. The other nodes' volumes may be thousands, so it asks which
// they are only if something is mounted that the journal does not know.
func (d *Driver) clearPaths(ctx context.Context, here string) error {
	unknown, err := d.node.Mounted()
	if err != nil {
		return err
	}
	for _, name := range d.held() {
		delete(unknown, node.DirOf(name))
	}
	if len(unknown) == 0 {
		return nil
	}
	all, err := d.controller.List(ctx)
	for _, vol := range all {
		if unknown[node.DirOf(vol.Name)] && !vol.HeldBy(here) {
			d.tasks.Go(func() { d.clearPath(ctx, vol.Name) })
		}
	}
	return err
}

// clearPath takes away the mount of a volume that this node does not hold. If the journal was lost, and the disk taken from
// this node since, its dead mount is in the way of the next. Its unmount may hang in the kernel, which must not keep the other
// volumes from their turn.
func (d *Driver) clearPath(ctx context.Context, name string) {
	d.attempt(name, volume.Reconciling, func(h *handle) {
		if h.Entry() != nil {
			return
		}
		if err := h.Unmount(ctx); err != nil && ctx.Err() == nil {
			h.Log().WithError(err).Warn("The mount of a volume that this node does not hold could not be taken away")
			d.found(name, volume.DeadMount)
		}
	})
}

// noteStray notes a stray if its device is here.
func (d *Driver) noteStray(ctx context.Context, h *handle, vol *providers.Volume) (done bool) {
	_, err := d.node.FindDevice(ctx, vol.Serial)
	log := h.Log().WithField("id", vol.ID)
	switch {
	case errors.Is(err, mount.ErrNoDevice):
		// The answer may be of a time before a detach.
		if vol.Attachment.State != providers.Detaching && time.Since(d.noteAbsent(vol, false).since) >= providers.MaxStale {
			_ = d.reportAbsent(vol)
		}
		return true
	case err != nil:
		log.WithError(err).Warn("The device of a volume that this node may hold cannot be identified")
		return false
	}
	log.Warn("The cloud says that this node holds the volume, and the journal does not know it")
	d.found(h.Name, volume.Stray)
	if err = h.Record(ctx, vol, vol.Attachment.Node, false); err != nil {
		log.WithError(err).Error("The journal could not be brought up to date")
	}
	if h.Entry() != nil {
		h.Recognise(ctx)
	}
	return err == nil
}
