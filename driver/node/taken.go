package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
)

// Mounting is one mount of a volume on this node. It lasts until the kernel has let go of its file system, or until that is shut down.
type Mounting struct {
	Device mount.Device // that it was mounted from
	nth    int
}

// Exists tells whether it is a mount at all.
func (m Mounting) Exists() bool { return m != Mounting{} }

// Mounting is what this node has mounted of the volume, or had and containers may still have. It waits for nothing.
func (v *Volume) Mounting() Mounting {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.entry == nil || v.entry.Taken || v.from == (mount.Device{}) {
		return Mounting{}
	}
	return Mounting{v.from, v.times}
}

// mountedFrom notes the device that the volume was mounted from.
func (v *Volume) mountedFrom(dev mount.Device) {
	v.set(func() {
		v.from, v.down, v.counted, v.failed = dev, false, false, false
		v.times++
	})
}

// IsHeld tells whether the kernel holds the file system of a mount, at the volume's path or in a container.
func (v *Volume) IsHeld(ctx context.Context, m Mounting) (bool, error) {
	if staged, err := v.node.host.IsStaged(ctx, v.dir, m.Device); err == nil && staged {
		return true, nil
	}
	users, err := v.node.host.Users(ctx, m.Device)
	return len(users) > 0, err
}

// IsCutOff tells whether the kernel has removed the device of a mount whose file system it still holds. It does that for good: whatever
// becomes of the disk, that file system never reaches it again.
func (v *Volume) IsCutOff(ctx context.Context, m Mounting) bool {
	removed, err := v.node.host.Removed(m.Device)
	if err != nil || !removed {
		return false
	}
	held, err := v.IsHeld(ctx, m)
	return held && err == nil
}

// answerTimeout is how long a disk may take to answer a read.
const answerTimeout = 10 * time.Second

var errNoAnswer = fmt.Errorf("it has not answered a read within %s", answerTimeout)

// Silence is why the device of a mount cannot be read from; nil if it can.
func (v *Volume) Silence(ctx context.Context, m Mounting) error {
	removed, err := v.node.host.Removed(m.Device)
	if err == nil && removed {
		return mount.ErrNoDevice
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	return v.node.host.Answers(ctx, m.Device)
}

// HasNewErrors tells whether the kernel has met errors on the volume's disk since the last look.
func (v *Volume) HasNewErrors() bool {
	m := v.Mounting()
	if !m.Exists() {
		return false
	}
	n, err := v.node.host.Errors(m.Device)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		return v.failed
	}
	more := v.counted && n > v.errors // a file system keeps its count
	v.errors, v.counted = n, true
	return more || v.failed
}

// ShutDown shuts down the file system of a volume whose disk was taken from this node, as mount.Host.Shutdown does, and takes away its
// mount at the volume's path. The journal says so from before: what is mounted there never counts as the volume again. It can be called
// again. Errors: mount.ErrNoShutdown; then whoever uses the volume must be stopped.
func (v *Volume) ShutDown(ctx context.Context) error {
	e, dev := v.Entry(), v.Device()
	if m := v.Mounting(); m.Exists() {
		dev = m.Device
	} else if e.Taken {
		dev = e.Device
	}
	if !e.Taken {
		v.reduce(e.but(func(e *Entry) { e.Taken, e.Device = true, dev }))
	}
	err := v.node.host.Shutdown(ctx, dev, v.dir)
	if errors.Is(err, mount.ErrNotStaged) {
		if users, usersErr := v.node.host.Users(ctx, dev); usersErr == nil && len(users) == 0 {
			err = nil // it is gone
		}
	}
	v.down = err == nil || errors.Is(err, mount.ErrNoShutdown)
	if err == nil && v.Entry().Frozen {
		v.thawed()
	}
	unstageErr := v.node.host.Unstage(ctx, v.dir)
	v.set(func() { v.path = "" })
	if unstageErr != nil { // a release tries again
		v.Log().WithError(unstageErr).Info("The mount of a volume whose disk was taken from this node could not be taken away yet")
	}
	return err
}

// IsTaken tells whether the disk was taken from this node, and what is left of the volume here is dead.
func (v *Volume) IsTaken() bool {
	e := v.Entry()
	return e != nil && e.Taken
}

// IsDown tells whether ShutDown has done what it can.
func (v *Volume) IsDown() bool { return v.down }

// bury takes away what is left of the volume's last mount, if its disk was taken from this node since, before the disk is mounted on
// dev. While the kernel holds a file system on a device, mounting that device is to mount the same one again, dead or not. The kernel knows
// a btrfs by its id and not by its device: it lets the old one go on with the disk that comes back, and with what it remembers of it.
func (v *Volume) bury(ctx context.Context, dev mount.Device, fstype string) error {
	e := v.Entry()
	if !e.Taken {
		return nil
	}
	if err := v.node.host.Unstage(ctx, v.dir); err != nil {
		return err
	}
	if dev.Major != e.Device.Major || dev.Minor != e.Device.Minor {
		if fstype != "btrfs" {
			return nil
		}
		users, err := v.node.host.Users(ctx, e.Device)
		if err == nil && len(users) > 0 {
			err = volume.Fail(volume.InUse, "the disk was taken from this node meanwhile, and its old btrfs would go on with it", leftBehind(users))
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freeTimeout)
	defer cancel()
	if err := v.node.host.WaitFree(ctx, dev); err != nil {
		return volume.Also(err, "the disk was taken from this node meanwhile, and what has its old file system must end before it is mounted again")
	}
	return nil
}

// adviseTaken is what to do about a mount that failed while containers have the volume's file system from before its disk was taken from
// this node: xfs and btrfs refuse a file system whose UUID is mounted. It is empty otherwise.
func (v *Volume) adviseTaken(ctx context.Context) string {
	e := v.Entry()
	if !e.Taken {
		return ""
	}
	users, err := v.node.host.Users(ctx, e.Device)
	if err != nil || len(users) == 0 {
		return ""
	}
	return leftBehind(users)
}

func leftBehind(users mount.Users) string {
	return fmt.Sprintf("stop %s, which still has the file system from before the disk was taken from this node", users)
}
