package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// reconcileLoop sets right, at start and from time to time, what nobody told the plugin about: containers that died unseen,
// releases that were cut short, volumes left attached by a life whose journal is lost. It asks the kernel and the cloud,
// never Docker.
func (d *Driver) reconcileLoop() {
	var looked time.Time // when strays were last looked for
	for lookAfter := d.lookAfterStart; ; lookAfter = d.lookAfter {
		if age := time.Since(looked); age >= straysEvery || d.mayHaveStrays(d.ctx, age) {
			if begun := time.Now(); d.findStrays(d.ctx) {
				looked = begun
			}
		}
		for _, name := range d.held() {
			// Nobody waits for them: one that hangs in the kernel must not keep the others from their turn.
			d.tasks.Go(func() { lookAfter(name) })
		}
		if pause(d.ctx, reconcileEvery) != nil {
			return
		}
		// Here, so that no Mount has to fail first. (And not sooner: an engine disables a plugin that ends at once.)
		if err := d.mustBeSeen(d.ctx); err != nil && !errors.Is(err, errUnseen) {
			d.log.WithError(err).Warn("Whether the engine sees what is mounted cannot be told")
		}
	}
}

// lookAfter reconciles one volume, unless somebody is at work on it.
func (d *Driver) lookAfter(name string) {
	if v := d.tryEnter(name, "being looked after"); v != nil {
		d.reconcile(d.ctx, v)
		d.leave(v)
	}
}

// lookAfterStart looks after one volume soon, again and again, for the first half minute: an engine that starts after a crash
// starts its plugins, and then ends the containers that had outlived it, for which it sends no Unmount. Elsewhere their
// successors wait for the volume.
func (d *Driver) lookAfterStart(name string) {
	for wait := time.Second; wait < reconcileEvery; wait *= 2 {
		d.lookAfter(name)
		if pause(d.ctx, wait) != nil {
			return
		}
	}
}

// held returns the names of the volumes that this node may hold.
func (d *Driver) held() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name, v := range d.volumes {
		if v.journaled() != nil {
			names = append(names, name)
		}
	}
	return names
}

// reconcile compares what the journal says of one volume with what the kernel holds, and releases the volume if nobody uses
// it. The caller holds the gate.
func (d *Driver) reconcile(ctx context.Context, v *volume) {
	e := v.journaled()
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	log := d.volumeLog(v).WithField("id", e.Volume)
	used, err := d.usedByContainers(ctx, v, e)
	if err != nil {
		log.WithError(err).Warn("Whether the volume is in use cannot be told; it is left as it is")
		return
	}
	switch {
	case used:
		v.staleSince, v.idleUntil = time.Time{}, time.Now().Add(linger)
		d.growInUse(ctx, v, e)
		return
	case len(e.IDs) == 0:
		if !e.Releasing && time.Now().Before(v.idleUntil) {
			return
		}
		if !e.Releasing && e.isStray() && d.active(v) {
			v.idleUntil = time.Now().Add(linger) // another engine of this machine may be about to mount it
			return
		}
	case d.orphaned(ctx, v, e):
		log.WithField("ids", e.IDs).Warn("The volume's mount was taken away, as an engine does that starts after a crash, and no container has it: its mount IDs are dropped")
	case d.active(v), v.staleSince.IsZero():
		v.staleSince = time.Now()
		return
	case time.Since(v.staleSince) < staleAfter:
		return
	default:
		log.WithField("ids", e.IDs).Warn("No container has the volume mounted, and no Unmount came: its mount IDs are dropped")
	}
	if err := d.release(ctx, v); err != nil {
		log.WithError(err).Warn("The volume could not be released yet")
	}
}

// growInUse lets the file system of a mounted volume fill a device that has become larger: who enlarges a disk in the cloud
// need not stop what uses it. What fails is tried again when the device has grown further, or at the next mount.
func (d *Driver) growInUse(ctx context.Context, v *volume, e *entry) {
	if v.mountpoint() == "" {
		return
	}
	dev, err := d.host.Find(ctx, e.Serial)
	if err != nil || dev.Size <= v.fitted {
		return
	}
	grown, err := d.host.Grow(ctx, dev, v.dir)
	if ctx.Err() != nil {
		return
	}
	v.fitted = dev.Size
	log := d.volumeLog(v).WithField("id", e.Volume).WithField("device", dev.Path).WithField("size", FormatSize(dev.Size))
	switch {
	case err != nil:
		log.WithError(err).Warn("The file system of a volume in use could not be grown to its device")
	case grown:
		log.Info("File system grown to its device, while in use")
	}
}

// orphaned tells whether blockvol's own mount of the volume is gone. An engine that starts after a crash takes it away, and
// so does one that disables the plugin. No container can come to use what was answered before; who wants the volume mounts it
// again.
func (d *Driver) orphaned(ctx context.Context, v *volume, e *entry) bool {
	dev, err := d.deviceOf(ctx, v, e)
	if err != nil || dev == (mount.Device{}) {
		return false
	}
	published, err := d.host.IsStaged(ctx, v.dir, dev)
	return err == nil && !published
}

// active tells whether anything was read from or written to the volume's device since the last look: the engine fills a new
// volume from its image before the container's own mount exists.
func (d *Driver) active(v *volume) bool {
	now, err := d.host.Activity(v.device)
	before := v.activity
	v.activity = now
	return err == nil && now != before
}

// usedByContainers tells whether a mount other than blockvol's own holds the volume's file system.
func (d *Driver) usedByContainers(ctx context.Context, v *volume, e *entry) (bool, error) {
	dev, err := d.deviceOf(ctx, v, e)
	if err != nil || dev == (mount.Device{}) {
		return false, err
	}
	return d.host.InUse(ctx, dev)
}

// deviceOf returns the volume's device. For one that has vanished it is the device that was seen last, since the kernel may
// hold its file system still; it is zero if none was ever seen.
func (d *Driver) deviceOf(ctx context.Context, v *volume, e *entry) (mount.Device, error) {
	dev, err := d.host.Find(ctx, e.Serial)
	if !errors.Is(err, mount.ErrNoDevice) {
		return dev, err
	}
	if v.device != (mount.Device{}) {
		d.volumeLog(v).WithField("device", v.device.Path).Error("The volume's device has vanished from this node")
	}
	return v.device, nil
}

// absence is a disk that this node may hold though its device is not here.
type absence struct {
	id, serial  string
	node        string    // this node's id, if held
	held        bool      // the cloud says that this node holds it; otherwise an attach was given up, and may take effect yet
	settled     bool      // it was reported, or the cloud was asked again about the attach
	since, last time.Time // when that was found first, and last
}

// seen tells whether this boot has had the device of the entry's disk. The disk is this node's to detach then.
func (v *volume) seen(e *entry) bool { return v.device.Serial == e.Serial }

// notSeen is the error for a disk that the cloud says this node holds, and that is none of its doing. It may be another
// machine's, in use there, which runs with the same id. It is reported once, and shown in the volume's Status.
func (d *Driver) notSeen(vol *providers.Volume) error {
	err := errNotSeen(vol)
	if d.isMissing(vol, true).settled {
		return err
	}
	d.log.WithField("volume", vol.Name).WithField("id", vol.ID).WithError(err).Error("A disk that this node is said to hold is left attached")
	return err
}

// isMissing takes in that the cloud says that this node holds the volume, and that its device is not here. It returns what was
// known of that before.
func (d *Driver) isMissing(vol *providers.Volume, report bool) absence {
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

func errNotSeen(vol *providers.Volume) error {
	return fmt.Errorf("the cloud says that node %s holds the disk, which is this node's id, but this boot of it has not seen the disk's device: volume %q (%s) is not detached; see whether another machine runs with this node's id, and correct that; if none does, detach the disk in the cloud",
		vol.Attachment.Node, vol.Name, vol.ID)
}

// isAbsent tells whether it was reported that the cloud says that this node holds the volume, whose device is not here.
func (d *Driver) isAbsent(vol *providers.Volume) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.absent[vol.Name]
	return a.held && a.settled && a.id == vol.ID && vol.HeldBy(a.node)
}

// mayComeLate takes in that an attach was given up: it may take effect yet.
func (d *Driver) mayComeLate(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.absent[e.Name] = absence{id: e.Volume, serial: e.Serial, since: time.Now()}
}

// mayHaveStrays tells whether it is time to look for strays, since the device of a disk that was absent has come, or since
// one has been absent for long. The last look was that long ago.
func (d *Driver) mayHaveStrays(ctx context.Context, looked time.Duration) bool {
	d.mu.Lock()
	absent := maps.Clone(d.absent)
	d.mu.Unlock()
	may := false
	for name, a := range absent {
		if v := d.known(name); v == nil || v.journaled() == nil { // else the entry tells
			wait := straysDoubted
			switch {
			case a.held && !a.settled:
				wait = lag
			case !a.held && a.settled:
				wait = straysEvery
			}
			may = may || min(looked, time.Since(a.since)) >= wait || d.isHere(ctx, a.serial)
		}
	}
	return may
}

// forgetAbsent drops what a look for strays, begun at that time, has settled.
func (d *Driver) forgetAbsent(begun time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, a := range d.absent {
		switch age := begun.Sub(a.since); {
		case a.held && a.last.Before(begun), age >= straysEvery && !a.held:
			delete(d.absent, name)
		case age >= straysDoubted && !a.held:
			a.settled = true // only its device is watched for
			d.absent[name] = a
		}
	}
}

// findStrays looks for volumes that the cloud says this node holds and the journal does not know: of a journal that was
// lost, or of an attach that took effect after it was given up. Those whose devices are here are noted, and so released if
// nobody uses them. The others are reported.
func (d *Driver) findStrays(ctx context.Context) (done bool) {
	begun := time.Now()
	node, err := d.provider.Node(ctx)
	if err != nil {
		d.log.WithError(err).Warn("Which node this is cannot be told yet")
		return false
	}
	d.introduce.Do(func() {
		d.log.WithField("node", node.ID).WithField("zone", node.Zone).Info("The cloud knows this node")
	})
	all, err := d.catalog.list(ctx)
	if err != nil {
		d.log.WithError(err).Warn("Which volumes this node holds cannot be told yet")
		return false
	}
	done = true
	for _, vol := range all {
		v := d.tryEnter(vol.Name, "being looked after")
		switch {
		case v == nil: // a call has it, and will note it
			continue
		case v.journaled() != nil:
		case vol.HeldBy(node.ID):
			done = d.takeUp(ctx, v, vol) && done
			d.leaveUnused(v)
			continue
		default:
			// If the journal was lost, and the disk taken from this node since, its dead mount is in the way of the next. Its
			// unmount may hang in the kernel, which must not keep the other volumes from their turn.
			d.tasks.Go(func() {
				if err := d.host.Unstage(ctx, v.dir); err != nil {
					d.volumeLog(v).WithError(err).Warn("The mount of a volume that this node does not hold could not be taken away")
				}
				d.leave(v)
			})
			continue
		}
		d.leave(v)
	}
	if done {
		d.forgetAbsent(begun)
	}
	return done
}

// takeUp notes a stray if its device is here.
func (d *Driver) takeUp(ctx context.Context, v *volume, vol *providers.Volume) (done bool) {
	_, err := d.host.Find(ctx, vol.Serial)
	switch {
	case errors.Is(err, mount.ErrNoDevice):
		// The answer may be of a time before a detach.
		if vol.Attachment.State != providers.Detaching && time.Since(d.isMissing(vol, false).since) >= lag {
			_ = d.notSeen(vol)
		}
		return true
	case err != nil:
		d.volumeLog(v).WithError(err).Warn("The device of a volume that this node may hold cannot be identified")
		return false
	}
	d.volumeLog(v).WithField("id", vol.ID).Warn("The cloud says that this node holds the volume, and the journal does not know it")
	err = d.remember(ctx, v, vol, false)
	if err != nil {
		d.volumeLog(v).WithError(err).Error("The journal could not be brought up to date")
	}
	d.recognise(ctx, v, vol.Serial)
	return err == nil
}
