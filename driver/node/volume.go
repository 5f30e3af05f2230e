package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Volume is what this node has of one volume. One caller at a time works on it; Entry, Mountpoint, Device and Users may be called at
// any time.
type Volume struct {
	Name string
	node *Node
	dir  string // its directory under the published one

	unbackedSince time.Time // since when no container's mount backs its uses
	backed        bool      // whether a container's mount has been seen since the last use began: nothing fills it from an image then
	down          bool      // this process has shut the file system down, if the entry says that the disk was taken
	fitted        int64     // the size of the device, in bytes, when its file system was last seen to fill it, or could not be made to

	mu     sync.Mutex
	entry  *Entry       // its journal entry; nil if this node has nothing of it
	device mount.Device // zero until seen
	path   string       // where it is mounted; empty if it is not
	from   mount.Device // what it was mounted from last, and may be mounted from in containers still; zero if it was unmounted everywhere
	times  int          // how often from was set
	fstype string       // what was mounted there by this process
	staged time.Time    // when this process mounted it

	space     mount.Space // how full that was when it was last measured; zero if it was not
	spaceAt   time.Time   // when that was
	measuring bool        // now

	users    mount.Users    // as last found
	activity mount.Activity // what the device had done when it was last looked at
	activeAt time.Time      // when it was last seen to have done more since the look before
	errors   uint64         // of the device, when they were last counted
	counted  bool           // that was since it was mounted
	failed   bool           // its file system could not be measured: the disk was in error

	releasing time.Time // since when the entry says so; zero if it does not
}

// Entry is the volume's journal entry, nil if this node has nothing of the volume. It is not to be changed.
func (v *Volume) Entry() *Entry {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.entry
}

// Mountpoint is where the volume is mounted, "" if it is not.
func (v *Volume) Mountpoint() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.path
}

// Device is the volume's device as last seen, zero if it was not.
func (v *Volume) Device() mount.Device {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.device
}

// FSType is the file system that this process has mounted, "" if an earlier one has.
func (v *Volume) FSType() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.fstype
}

// MountedSince is since when the volume is mounted, zero if it is not or if an earlier process has mounted it.
func (v *Volume) MountedSince() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.path == "" {
		return time.Time{}
	}
	return v.staged
}

// Seen tells whether this boot has had the device of the volume's disk. The disk is this node's to detach then.
func (v *Volume) Seen() bool {
	e := v.Entry()
	return e != nil && v.Device().Serial == e.Serial
}

// ReleasingSince is since when nobody uses the volume and its release is unfinished, as this process knows it; zero if it is not
// being released.
func (v *Volume) ReleasingSince() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.releasing
}

// become makes e the volume's entry in memory. The caller holds mu, or has the volume to itself.
func (v *Volume) become(e *Entry) {
	v.entry = e
	if e == nil {
		v.users = nil
	}
	if e == nil || !e.Releasing {
		v.releasing = time.Time{}
	} else if v.releasing.IsZero() {
		v.releasing = time.Now()
	}
}

func (v *Volume) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// Log is the log, for what is about the volume.
func (v *Volume) Log() logrus.FieldLogger { return v.node.log.WithField("volume", v.Name) }

// write makes e the volume's entry, on disk and in memory. If the disk cannot be written it is so in memory only, and the
// error is returned.
func (v *Volume) write(e *Entry) error {
	saved := *e
	err := v.node.journal.Put(&saved)
	saved.unsaved = err != nil
	v.set(func() { v.become(&saved) })
	return err
}

// reduce takes down that there is less use of the volume. A journal that cannot be written must not hold that up: what it
// wrongly says of uses is found out from the kernel.
func (v *Volume) reduce(e *Entry) {
	if err := v.write(e); err != nil {
		v.Log().WithError(err).Error("The journal could not be brought up to date")
	}
}

// Record writes the journal entry of a volume that this node, by that id, is about to hold, or holds by an attach that is ours or not.
func (v *Volume) Record(ctx context.Context, vol *providers.Volume, as string, ours bool) error {
	e := v.Entry()
	if e != nil && e.Formatting && !v.node.HasDevice(ctx, vol.Serial) {
		// The disk was elsewhere, or may have been: what is on it now is not this node's to clear. What the cloud says of
		// its holder may be of another time; the device of a disk that stayed is here.
		if err := v.write(e.but(func(e *Entry) { e.Formatting = false })); err != nil {
			return err
		}
		e = v.Entry()
	}
	if e != nil && e.Volume == vol.ID && !e.unsaved && !e.Releasing && (e.Ours || !ours) {
		return nil
	}
	if e != nil && e.Volume != vol.ID && len(e.Uses) > 0 {
		return volume.Fail(volume.Conflict, fmt.Sprintf("the volume was disk %s when containers on this node mounted it, and is %s now", e.Volume, vol.ID), "stop those containers first")
	}
	// A disk that was forgotten and adopted has another name now. What is under way for the old one would take it from the new.
	if other := v.reserve(vol.ID); other != "" {
		return volume.Fail(volume.Busy, fmt.Sprintf("this node has not yet released the disk %s, which was volume %q", vol.ID, other), "try again in a minute")
	}
	if e == nil || e.Volume != vol.ID {
		if e != nil {
			v.free(e.Volume)
		}
		e = &Entry{Version: journalVersion, Boot: v.node.boot, Name: v.Name, Volume: vol.ID, Serial: vol.Serial, Node: as, CreatedAt: vol.CreatedAt}
	}
	return v.write(e.but(func(e *Entry) { e.Releasing, e.Ours = false, e.Ours || ours }))
}

// reserve makes the disk the volume's. If another volume of this node has it, it returns that one's name.
func (v *Volume) reserve(disk string) (other string) {
	v.node.mu.Lock()
	defer v.node.mu.Unlock()
	if o := v.node.disks[disk]; o != nil && o != v {
		return o.Name
	}
	v.node.disks[disk] = v
	return ""
}

func (v *Volume) free(disk string) {
	v.node.mu.Lock()
	defer v.node.mu.Unlock()
	if v.node.disks[disk] == v {
		delete(v.node.disks, disk)
	}
}

// Use notes that the use has the volume, in the journal before it returns. undo takes that back.
func (v *Volume) Use(use Use) (undo func(), err error) {
	before := v.Entry()
	if err := v.write(before.with(use, v.Device())); err != nil {
		unsaved := before.but(func(e *Entry) { e.unsaved = true })
		v.set(func() { v.become(unsaved) }) // the caller takes the error for "not mounted"
		return nil, err
	}
	v.unbackedSince, v.backed = time.Time{}, false
	return func() {
		if !before.Has(use) { // else an earlier answer stands
			v.reduce(before)
		}
	}, nil
}

// Unuse notes that the use no longer has the volume. If it was the last, and the volume is to be released now, the journal says
// that as well.
func (v *Volume) Unuse(use Use, release bool) {
	e := v.Entry().without(use)
	if len(e.Uses) == 0 && release {
		e = e.releasing()
	}
	v.reduce(e)
}

// Release notes that nobody uses the volume and that it is being released.
func (v *Volume) Release() {
	if e := v.Entry(); !e.Releasing {
		v.reduce(e.releasing())
	}
}

// CancelAttach notes, for a later life, that an attach is being called off. Errors: something on this node uses the disk, or may.
func (v *Volume) CancelAttach(ctx context.Context, vol *providers.Volume, progress volume.Progress) error {
	e := v.Entry()
	if len(e.Uses) > 0 {
		return volume.Fail(volume.InUse, fmt.Sprintf("the cloud says that the attach to this node has failed, yet %d container(s) here use it: the disk is left as it is", len(e.Uses)), "")
	}
	if _, err := v.node.host.Find(ctx, vol.Serial); !errors.Is(err, mount.ErrNoDevice) {
		return volume.Fail(volume.InUse, "the cloud says that the attach to this node has failed, yet its device is here: the disk is left as it is", "")
	}
	if err := v.WaitFree(ctx, progress); err != nil {
		return volume.Also(err, "the cloud says that the attach to this node has failed, and the disk is left as it is")
	}
	if err := v.write(e.releasing()); err != nil {
		return volume.Also(err, "the attach, which has failed, is not cancelled")
	}
	return nil
}

// Forget removes the volume's journal entry after the disk was detached.
func (v *Volume) Forget() error {
	e := v.Entry()
	v.set(func() { v.device, v.from = mount.Device{}, mount.Device{} })
	if err := v.node.journal.Remove(v.Name); err != nil {
		return volume.Also(err, "the disk is detached, but its journal entry stays until that is repaired")
	}
	v.set(func() { v.become(nil) })
	v.free(e.Volume)
	return nil
}

// AbandonFormat notes that a format that was cut short is not to be finished, since the volume is removed.
func (v *Volume) AbandonFormat() {
	if e := v.Entry(); e.Formatting {
		v.reduce(e.but(func(e *Entry) { e.Formatting = false }))
	}
}
