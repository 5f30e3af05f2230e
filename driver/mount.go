package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Mount brings the volume up on this node, if it is not, notes that the mount ID uses it, and returns its path. The path
// shows the volume's file system, verified, or an error is returned; never an empty directory. The ID is in the journal
// before the answer.
func (d *Driver) Mount(ctx context.Context, name, id string) (string, error) {
	called := time.Now()
	v, err := d.enterOrJoin(ctx, name)
	if err != nil {
		return "", err
	}
	owns := true
	defer func() {
		if owns {
			d.leaveUnused(v)
		}
	}()
	if !d.isUp(ctx, v) {
		owns, err = d.background(ctx, v, func(work context.Context) error {
			work, cancel := v.whileWanted(work, ctx)
			defer cancel()
			return d.bringUp(work, v, called)
		})
		if err != nil {
			return "", err
		}
	}
	if err := d.mustBeSeen(ctx); err != nil {
		return "", fmt.Errorf("%w: volume %q is not mounted for this container", err, v.name)
	}
	before := v.journaled()
	if err := d.note(v, before.with(id, v.device)); err != nil {
		v.setEntry(before.unwritten()) // Docker takes the error for "not mounted"
		return "", fmt.Errorf("%w: volume %q is not mounted for this container", err, name)
	}
	v.staleSince = time.Time{}
	if len(before.IDs) == 0 {
		v.usedSince = time.Now()
	}
	if ctx.Err() != nil && !before.has(id) {
		d.noteUnused(v, before) // nobody hears the answer: the ID would stand for ever
		return "", v.unfinished(ctx)
	}
	return v.mountpoint(), nil
}

var errUnseen = errors.New("the engine does not see what the plugin mounts, as can happen when it was killed and has started again; the plugin restarts, try again")

// mustBeSeen makes sure that the engine, and so a container, sees what is mounted here, and not the empty directory below. If
// not, this process ends: the engine starts another, and gives that one a directory which it sees.
func (d *Driver) mustBeSeen(ctx context.Context) error {
	seen, err := d.host.Shared(ctx)
	if err != nil || seen {
		return err
	}
	d.log.Error("The engine does not see what this plugin mounts: this process ends, for the engine to start another")
	if d.restart != nil {
		d.restart()
	}
	return errUnseen
}

// enterOrJoin takes the volume's gate to mount it. If an attempt to bring it up, already running when the call came, has
// failed meanwhile, its failure is this call's too.
func (d *Driver) enterOrJoin(ctx context.Context, name string) (*volume, error) {
	before := 0
	if v := d.known(name); v != nil {
		before, _ = v.attempted()
	}
	v, err := d.enter(ctx, name, "being mounted")
	if err != nil {
		return nil, err
	}
	if after, failure := v.attempted(); after != before && failure != nil {
		d.leaveUnused(v)
		return nil, failure
	}
	return v, nil
}

// isUp tells whether the kernel shows the volume's file system at its path now, on a device that still is the volume's: the
// mount of a disk that was taken away looks like any other.
func (d *Driver) isUp(ctx context.Context, v *volume) bool {
	e := v.journaled()
	if e == nil || v.mountpoint() == "" {
		return false
	}
	dev, err := d.host.Find(ctx, e.Serial)
	if err != nil || dev.Name != v.device.Name || dev.Major != v.device.Major || dev.Minor != v.device.Minor {
		return false
	}
	up, err := d.host.IsStaged(ctx, v.dir, dev)
	if err == nil && !up {
		v.setPath("")
	}
	return err == nil && up
}

// bringUp attaches the volume's disk to this node, formats it if it may, and mounts it, for a call that came at that time.
func (d *Driver) bringUp(ctx context.Context, v *volume, called time.Time) (err error) {
	defer func() { v.attemptEnded(err) }()
	took := lapsSince(called)
	node, err := d.provider.Node(ctx)
	if err != nil {
		return fmt.Errorf("%w: volume %q cannot be mounted before this node knows who it is", err, v.name)
	}
	vol, attaching, err := d.acquire(ctx, v, node)
	if err != nil {
		return err
	}
	took.lap("acquire")
	v.step("being attached: waiting for the device")
	dev, err := d.awaitDevice(ctx, v, vol, node, attaching)
	if err != nil {
		return err
	}
	took.lap("attach")
	v.setDevice(dev)
	if dev.Size < vol.Size {
		return fmt.Errorf("device %s has %d bytes where the cloud says that volume %q (%s) has %d: it is not mounted on node %s; if it has just been made larger, the kernel must look at it again",
			dev.Path, dev.Size, v.name, vol.ID, vol.Size, node.ID)
	}
	set := settingsOf(vol.Record)
	if vol, err = d.formatOnce(ctx, v, vol, node, dev, &set); err != nil {
		return err
	}
	took.lap("format")
	v.step("being checked and mounted")
	v.fitted = 0
	// Nothing is cut short: half an fsck is worse than a late one.
	path, err := d.host.Stage(context.WithoutCancel(ctx), dev, v.dir, mount.StageSpec{
		FSType: set.fstype, Layout: set.layout, MountOptions: set.mountOptions, UID: set.uid, GID: set.gid, Mode: set.mode,
		Warn: func(err error) {
			v.fitted = dev.Size // and was told
			d.volumeLog(v).WithError(err).Warn("The volume is mounted, but not as it should be")
		},
	})
	if errors.Is(err, mount.ErrBlank) {
		return lostData(v, vol, dev)
	}
	if err != nil {
		return fmt.Errorf("%w: volume %q (%s) is not mounted on node %s%s", err, v.name, vol.ID, node.ID, set.advise(err, vol))
	}
	took.lap("mount")
	v.setPath(path)
	vol.Attachment = providers.Attachment{Node: node.ID, State: providers.Attached}
	d.catalog.put(vol)
	d.volumeLog(v).WithField("device", dev.Path).WithField("id", vol.ID).WithFields(took.fields()).Info("Volume mounted")
	return nil
}

// advise is what to do about a mount that failed because of options that were accepted when the volume was created.
func (s settings) advise(err error, vol *providers.Volume) string {
	switch {
	case errors.Is(err, mount.ErrWrongFS) && vol.Snapshot != "":
		return fmt.Sprintf("; if it was created with another fstype than snapshot %s has, remove it and create it again without", vol.Snapshot)
	case errors.Is(err, mount.ErrInvalid) && len(s.mountOptions) > 0:
		return fmt.Sprintf("; if its mount-options %q are the reason and it is new, remove it and create it again with others; if it holds data, create another volume from a snapshot of it, with mount-options=defaults",
			strings.Join(s.mountOptions, ","))
	}
	return ""
}

// laps are how long the steps of a mount have taken, for whoever wonders why one was slow: "acquire" from the call until the
// cloud accepted the attach, waits for other calls and for a holder included, "attach" from then until the device was here,
// "format", or the proof that there is nothing to format, and "mount", the check of the file system included.
type laps struct {
	begun, last time.Time
	steps       logrus.Fields
}

func lapsSince(begin time.Time) *laps { return &laps{begin, begin, logrus.Fields{}} }

func (l *laps) lap(step string) {
	now := time.Now()
	l.steps[step] = now.Sub(l.last).Round(time.Millisecond)
	l.last = now
}

func (l *laps) fields() logrus.Fields {
	l.steps["took"] = l.last.Sub(l.begun).Round(time.Millisecond)
	return l.steps
}

// acquire makes the cloud attach the volume to this node: at once if it is free, after its holder has let go otherwise. It
// tells whether the attach has still to end, and returns a description of the volume that is the caller's own.
func (d *Driver) acquire(ctx context.Context, v *volume, node providers.Node) (vol *providers.Volume, attaching bool, err error) {
	held := holderWatch{since: time.Now()}
	v.stuck("the cloud has not answered yet, waited for", "; what is mounted already is not affected")
	var retry backoff
	logged, refusalLogged := "", time.Time{}
	for found := d.catalog.free(v.name); ; found = nil {
		refused := false
		if found == nil {
			found, err = d.find(ctx, v.name)
			switch {
			case errors.Is(err, providers.ErrNotFound):
				return nil, false, fmt.Errorf("%w: volume %q cannot be mounted on node %s: if nobody has removed it, see the cloud's own records for who deleted its disk", err, v.name, node.ID)
			case err != nil:
				return nil, false, fmt.Errorf("%w: volume %q cannot be mounted on node %s", err, v.name, node.ID)
			}
		}
		vol := ownCopy(found)
		if vol.Zone != "" && node.Zone != "" && vol.Zone != node.Zone {
			return nil, false, fmt.Errorf("volume %q (%s) is in zone %s and node %s in zone %s, where it cannot be attached: run the service in zone %s, or copy the volume by a snapshot",
				v.name, vol.ID, vol.Zone, node.ID, node.Zone, vol.Zone)
		}
		attach, elsewhere := false, vol.Held() && !vol.HeldBy(node.ID)
		switch {
		case (!vol.Held() || vol.HeldBy(node.ID)) && time.Since(v.detachedAt) < lag:
			// Whatever the answer says may be of a time before that detach, and the device, though it is here, about to go.
			v.step("being detached from this node first")
		case !vol.Held(), vol.HeldBy(node.ID) && (vol.Attachment.State == providers.Attaching || vol.Attachment.State == providers.Attached):
			// Held by this node it may be of an earlier attempt, or of the life before a crash. The answer may also be older
			// than a detach, or call attached what the machine has lost, as after a reboot: asking again is harmless.
			attach = true
		case vol.HeldBy(node.ID) && vol.Attachment.State == providers.AttachFailed:
			v.step("being detached after an attach that failed")
			if err := d.callOff(ctx, v, vol, node); err != nil {
				return nil, false, err
			}
		case vol.HeldBy(node.ID):
			v.step("being detached from this node first")
		default:
			leaving, err := d.displace(ctx, v, vol, &held)
			if err != nil {
				return nil, false, err
			}
			attach = held.mayBeFree()
			if leaving || time.Since(held.since) < lag/2 { // it is releasing the volume, or has done so since
				retry.shorten()
			}
		}
		if attach {
			if err := d.remember(ctx, v, vol, !vol.HeldBy(node.ID)); err != nil {
				return nil, false, err
			}
			if !elsewhere {
				v.step("being attached")
			}
			held.tries++
			err := d.provider.Attach(ctx, vol.ID)
			if err == nil {
				return vol, elsewhere || vol.Attachment.State != providers.Attached, nil
			}
			// What was found may have been deleted since; then the next answer is of what has the name now, if anything.
			deleted := errors.Is(err, providers.ErrNotFound) && time.Since(held.since) < lag
			if !deleted && !errors.Is(err, providers.ErrBusy) && !errors.Is(err, providers.ErrHeld) {
				return nil, false, fmt.Errorf("%w: volume %q (%s) cannot be attached to node %s", err, v.name, vol.ID, node.ID)
			}
			if refused = !elsewhere; refused { // else that it is held is said already
				v.refused(err)
			}
		}
		doing, advice := v.state()
		// A refusal may name its request, so that no two read the same.
		if doing != logged && (!refused || time.Since(refusalLogged) >= time.Minute) {
			d.volumeLog(v).WithField("id", vol.ID).WithField("why", doing).Info("The volume cannot be attached yet")
			logged = doing
			if refused {
				refusalLogged = time.Now()
			}
		}
		if err := retry.wait(ctx); err != nil {
			return nil, false, fmt.Errorf("%s, %w: volume %q could not be attached to node %s%s", doing, err, v.name, node.ID, advice)
		}
	}
}

// callOff detaches what an attach has left, unless anything on this node uses the volume.
func (d *Driver) callOff(ctx context.Context, v *volume, vol *providers.Volume, node providers.Node) error {
	e := v.journaled()
	if e == nil || e.Volume != vol.ID || !e.Ours {
		return d.notSeen(vol)
	}
	if len(e.IDs) > 0 {
		return fmt.Errorf("the cloud says that the attach to this node has failed, yet %d container(s) here use it: volume %q (%s) is left as it is", len(e.IDs), v.name, vol.ID)
	}
	if _, err := d.host.Find(ctx, vol.Serial); !errors.Is(err, mount.ErrNoDevice) {
		return fmt.Errorf("the cloud says that the attach to this node has failed, yet its device is here: volume %q (%s) is left as it is", v.name, vol.ID)
	}
	if err := d.awaitFree(ctx, v, e); err != nil {
		return fmt.Errorf("%w: the attach to this node has failed by the cloud's account, and the volume is left as it is: volume %q (%s)", err, v.name, vol.ID)
	}
	if err := d.note(v, e.releasing()); err != nil { // a later life is to know of the detach
		return fmt.Errorf("%w: an attach of volume %q (%s) to node %s that failed is not called off", err, v.name, vol.ID, node.ID)
	}
	err := d.provider.Detach(ctx, vol.ID, node.ID, false)
	v.detachedAt = time.Now()
	if err != nil && !errors.Is(err, providers.ErrBusy) {
		return fmt.Errorf("%w: an attach of volume %q (%s) to node %s that failed could not be called off", err, v.name, vol.ID, node.ID)
	}
	return nil
}

// remember writes the journal entry of a volume that this node is about to hold, or holds by an attach that is ours or not.
func (d *Driver) remember(ctx context.Context, v *volume, vol *providers.Volume, ours bool) error {
	e := v.journaled()
	if e != nil && e.Formatting && !d.isHere(ctx, vol.Serial) {
		// The disk was elsewhere, or may have been: what is on it now is not this node's to clear. What the cloud says of
		// its holder may be of another time; the device of a disk that stayed is here.
		if err := d.note(v, e.formatting(false)); err != nil {
			return fmt.Errorf("%w: volume %q is not attached", err, v.name)
		}
		e = v.journaled()
	}
	if e != nil && e.Volume == vol.ID && !e.unsaved && !e.Releasing && (e.Ours || !ours) {
		return nil
	}
	if e != nil && e.Volume != vol.ID && len(e.IDs) > 0 {
		return fmt.Errorf("volume %q was %s when containers on this node mounted it and is %s now: stop those containers first", v.name, e.Volume, vol.ID)
	}
	// A disk that was forgotten and adopted has another name now. What is under way for the old one would take it from the new.
	free, other := d.reserve(v, vol.ID)
	if other != "" {
		return fmt.Errorf("this node has not yet released the disk, which was volume %q: volume %q (%s) is not attached; try again in a minute", other, v.name, vol.ID)
	}
	defer free()
	if e == nil || e.Volume != vol.ID {
		e = &entry{Version: journalVersion, Boot: d.boot, Name: v.name, Volume: vol.ID, Serial: vol.Serial, CreatedAt: vol.CreatedAt}
	}
	if err := d.note(v, e.holding(ours)); err != nil {
		return fmt.Errorf("%w: volume %q is not attached", err, v.name)
	}
	return nil
}

// reserve keeps a disk for one volume until that has its entry. If another volume of this node has the disk, it returns that
// one's name.
func (d *Driver) reserve(v *volume, disk string) (free func(), other string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.volumes {
		if e := o.journaled(); o != v && (o.reserved == disk || e != nil && e.Volume == disk) {
			return nil, o.name
		}
	}
	v.reserved = disk
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		v.reserved = ""
	}, ""
}

// awaitDevice waits for the kernel to show the volume's device. The cloud is asked seldom, to learn of failure.
func (d *Driver) awaitDevice(ctx context.Context, v *volume, vol *providers.Volume, node providers.Node, attaching bool) (mount.Device, error) {
	waiting, cancel := context.WithTimeoutCause(ctx, attachTimeout, errAttachTimeout)
	defer cancel()
	waiting, fail := context.WithCancelCause(waiting)
	defer fail(nil)
	d.tasks.Go(func() { fail(d.watchAttach(waiting, vol, node)) })

	dev, err := d.host.Wait(waiting, vol.Serial)
	if err == nil {
		return dev, nil
	}
	cause := context.Cause(waiting)
	if !errors.Is(cause, errAttachTimeout) && !errors.Is(cause, errAttachFailed) {
		if cause != nil {
			err = cause
		}
		return mount.Device{}, fmt.Errorf("%w: the device of volume %q (%s) was not found on node %s", err, v.name, vol.ID, node.ID)
	}
	if !attaching {
		return mount.Device{}, fmt.Errorf("%w (%w), though the cloud says that it is attached: volume %q (%s) is not mounted on node %s; see the kernel's log there, and whether another machine runs with this node's id",
			cause, err, v.name, vol.ID, node.ID)
	}
	if errors.Is(cause, errAttachTimeout) {
		cause = d.explain(ctx, cause, vol, node)
	}
	// An attach that does not end is called off, or the next one meets it again.
	if err := d.callOff(context.WithoutCancel(ctx), v, vol, node); err != nil {
		return mount.Device{}, fmt.Errorf("%w; %w", cause, err)
	}
	return mount.Device{}, fmt.Errorf("%w: volume %q (%s) was not attached to node %s; the attach was called off, a retry starts anew",
		cause, v.name, vol.ID, node.ID)
}

var (
	errAttachTimeout = fmt.Errorf("no device has arrived within %s", attachTimeout)
	errAttachFailed  = errors.New("the cloud could not attach the volume")
)

// watchAttach returns when the attach is known to have failed, or with nil at the end of ctx. It asks once: whatever the
// attach takes after that, the device tells of its end.
func (d *Driver) watchAttach(ctx context.Context, vol *providers.Volume, node providers.Node) error {
	doubted := false
	for wait := attachDoubt; pause(ctx, wait) == nil; {
		now, err := d.provider.Find(ctx, vol.Name)
		failure := fmt.Errorf("%w: it is no longer held by this node", errAttachFailed)
		switch {
		case errors.Is(err, providers.ErrNotFound):
			failure = fmt.Errorf("%w: it has been deleted", errAttachFailed)
		case err != nil: // says nothing about the attach
			continue
		case now.ID == vol.ID && now.HeldBy(node.ID) && now.Attachment.State == providers.AttachFailed:
			return fmt.Errorf("%w: %s", errAttachFailed, now.Attachment.Problem)
		case now.ID == vol.ID && now.HeldBy(node.ID):
			<-ctx.Done()
			return nil
		}
		// That nothing is attached is true before the attach too: an answer can be older than it.
		if doubted {
			return failure
		}
		doubted, wait = true, lag
	}
	return nil
}

// explain adds to the failure of an attach what the cloud says of it.
func (d *Driver) explain(ctx context.Context, failure error, vol *providers.Volume, node providers.Node) error {
	now, err := d.provider.Find(ctx, vol.Name)
	switch {
	case errors.Is(err, providers.ErrNotFound), err == nil && now.ID != vol.ID:
		return fmt.Errorf("%w, and the cloud says that the disk does not exist", failure)
	case err != nil:
		return failure
	case !now.HeldBy(node.ID):
		return fmt.Errorf("%w, and the cloud says that this node does not hold the disk", failure)
	case now.Attachment.Problem != "":
		return fmt.Errorf("%w, and the cloud calls the attachment %q: %s", failure, now.Attachment.State, now.Attachment.Problem)
	default:
		return fmt.Errorf("%w, and the cloud calls the attachment %q", failure, now.Attachment.State)
	}
}

// formatOnce formats the device if it has never held data, by the word of the device and of the cloud. It returns what the
// cloud has said last, and completes set accordingly. Package mount refuses any device that is not blank, whatever is asked
// here.
func (d *Driver) formatOnce(ctx context.Context, v *volume, vol *providers.Volume, node providers.Node, dev mount.Device, set *settings) (*providers.Volume, error) {
	if set.formatted && set.fstype != "" {
		return vol, nil // whether it still holds what it should, Stage sees
	}
	contents, err := d.host.Probe(ctx, dev)
	if err != nil {
		return nil, fmt.Errorf("%w: volume %q (%s) is not mounted", err, v.name, vol.ID)
	}
	e := v.journaled()
	if !set.formatted && vol.Snapshot == "" && (contents.Blank || e.Formatting) {
		if vol, err = d.askAsHolder(ctx, v, vol, node); err != nil {
			return nil, err
		}
		*set = settingsOf(vol.Record)
	}
	// From here on nothing is cut short: half a mkfs is worse than a late one.
	ctx = context.WithoutCancel(ctx)
	switch {
	case set.formatted:
		if contents.Blank {
			return nil, lostData(v, vol, dev)
		}
		if contents.FSType == "" {
			return nil, notOurs(v, vol, contents)
		}
		set.fstype = contents.FSType
		return vol, nil
	case contents.Blank && vol.Snapshot != "":
		return nil, lostData(v, vol, dev)
	case contents.Blank, e.Formatting:
		v.step("being formatted")
		err := d.host.Format(ctx, dev, mount.FormatSpec{
			FSType: set.fstype, Options: set.mkfsOptions, Size: vol.Size,
			Begin: func(context.Context) error { return d.note(v, e.formatting(true)) }, Begun: e.Formatting,
		})
		if err != nil {
			advice := ""
			if len(set.mkfsOptions) > 0 {
				advice = fmt.Sprintf("; it holds no data: if its mkfs-options %q are the reason, remove it and create it again with others", strings.Join(set.mkfsOptions, " "))
			}
			return nil, fmt.Errorf("%w: volume %q (%s) could not be formatted%s", err, v.name, vol.ID, advice)
		}
		if err := d.note(v, v.journaled().formatting(false)); err != nil {
			return nil, fmt.Errorf("%w: volume %q (%s) is not mounted", err, v.name, vol.ID)
		}
		d.volumeLog(v).WithField("device", dev.Path).WithField("fstype", set.fstype).Info("Volume formatted")
	case contents.FSType != set.fstype:
		return nil, notOurs(v, vol, contents)
	}
	// Just formatted, or formatted by an attempt that could not say so.
	if err := d.provider.Mark(ctx, vol.ID, recFormatted, set.fstype); err != nil {
		return nil, fmt.Errorf("%w: that volume %q (%s) is formatted could not be recorded with the cloud, so it is not mounted yet; a retry continues", err, v.name, vol.ID)
	}
	vol.Record[recFormatted] = set.fstype
	return vol, nil
}

// askAsHolder asks the cloud for its word on a volume that this node holds. Between the first question and the attach another
// node may have formatted the disk and marked it so. An answer that shows this node as the holder is not older than that.
func (d *Driver) askAsHolder(ctx context.Context, v *volume, vol *providers.Volume, node providers.Node) (*providers.Volume, error) {
	var retry backoff
	for begun := time.Now(); ; {
		now, err := d.provider.Find(ctx, v.name)
		missing := errors.Is(err, providers.ErrNotFound)
		switch {
		case err != nil && !missing:
			return nil, fmt.Errorf("%w: volume %q (%s) is not formatted before the cloud has said again what it knows of it", err, v.name, vol.ID)
		case !missing && now.ID == vol.ID && now.HeldBy(node.ID):
			return ownCopy(now), nil
		case time.Since(begun) >= lag:
			return nil, fmt.Errorf("the cloud does not say that node %s holds the disk whose device is here: volume %q (%s) is not formatted; see who took it in the cloud's records",
				node.ID, v.name, vol.ID)
		}
		if cause := retry.wait(ctx); cause != nil {
			return nil, fmt.Errorf("%w: volume %q (%s) is not formatted", cause, v.name, vol.ID)
		}
	}
}

// finishFormat completes a format that a crash cut short, before this node lets go of the volume: on another node the
// remains would be bytes that nobody knows, and be left alone.
func (d *Driver) finishFormat(ctx context.Context, v *volume, node providers.Node) error {
	e := v.journaled()
	vol, err := d.find(ctx, v.name)
	if err != nil {
		return err
	}
	dev, err := d.host.Find(ctx, e.Serial)
	if vol.ID != e.Volume || errors.Is(err, mount.ErrNoDevice) && !vol.HeldBy(node.ID) {
		return nil
	}
	if err != nil {
		return err
	}
	set := settingsOf(vol.Record)
	_, err = d.formatOnce(ctx, v, ownCopy(vol), node, dev, &set)
	return err
}

// isHere tells whether the kernel shows a device of that serial.
func (d *Driver) isHere(ctx context.Context, serial string) bool {
	_, err := d.host.Find(ctx, serial)
	return err == nil
}

// ownCopy is a description that may be changed: the provider may have given the same one to several callers.
func ownCopy(vol *providers.Volume) *providers.Volume {
	own := *vol
	own.Record = maps.Clone(vol.Record)
	return &own
}

// notOurs is the error for a disk that holds something else than the volume's file system.
func notOurs(v *volume, vol *providers.Volume, contents mount.Contents) error {
	return fmt.Errorf("the disk holds %s, which is not the file system of volume %q (%s): it is left as it is; if the volume is new and this is of no use, remove the volume and create it again",
		strings.Join(contents.Found, ", "), v.name, vol.ID)
}

// lostData is the error for a disk that should hold data and is blank.
func lostData(v *volume, vol *providers.Volume, dev mount.Device) error {
	return fmt.Errorf("the disk is blank but was formatted before: volume %q (%s) is not formatted again, since its data may have been lost or another disk be attached; compare device %s with the cloud's records, and restore a snapshot or remove the volume",
		v.name, vol.ID, dev.Path)
}

func (v *volume) attempted() (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.attempts, v.failed
}

func (v *volume) attemptEnded(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.attempts++
	v.failed = err
}

// pause waits, or returns the reason why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// backoff spaces the questions about something that another party has to finish: from half a second doubling to five,
// with jitter so that nodes do not ask in step.
type backoff struct{ last time.Duration }

func (b *backoff) wait(ctx context.Context) error {
	b.last = min(max(2*b.last, 500*time.Millisecond), 5*time.Second)
	return pause(ctx, b.last/2+jitter(b.last/2))
}

// jitter is a random time below the limit. The randomised run replaces it with one that can be repeated.
var jitter = rand.N[time.Duration]

// shorten keeps the next wait under a second: what is waited for is under way, and its end is not to go unnoticed for long.
func (b *backoff) shorten() { b.last = min(b.last, 400*time.Millisecond) }
