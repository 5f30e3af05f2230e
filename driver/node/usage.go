package node

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
)

// unbackedTimeout is how long uses may stand that no container's mount backs. Between the answer to Mount and the container's
// own mount lie a few seconds.
const unbackedTimeout = 2 * time.Minute

// Usage is what becomes of a volume by what the kernel says of its users.
type Usage int

// The usages of a volume.
const (
	Used      Usage = iota // a container or a process has its file system
	Unused                 // the journal has no uses, and the kernel no users
	Idle                   // as Unused, but its idle TTL is not over
	Active                 // as Unused, but its device is being read or written by something of another engine
	Undecided              // the journal has uses, the kernel no users yet, or no longer
	Abandoned              // the journal has uses, and no container has the volume for sure
)

func (u Usage) String() string {
	return [...]string{Used: "used", Unused: "unused", Idle: "idle", Active: "active", Undecided: "undecided", Abandoned: "abandoned"}[u]
}

// Usage compares the journal with the kernel. idle: its idle TTL is not over.
func (v *Volume) Usage(ctx context.Context, idle bool) (Usage, error) {
	if v.Entry().Frozen {
		v.thawLeft(ctx)
	}
	users, err := v.Users(ctx)
	if err != nil {
		return Undecided, err
	}
	e := v.Entry()
	why := "No container has the volume mounted, and no Unmount came"
	switch {
	case len(users) > 0:
		v.unbackedSince, v.backed = time.Time{}, true
		return Used, nil
	case len(e.Uses) == 0:
		switch {
		case e.Releasing, e.Taken:
		case idle:
			return Idle, nil
		case e.isStray() && v.isActive():
			return Active, nil // another engine of this machine may be about to mount it
		}
		return Unused, nil
	case e.Taken: // no container can come to use it
		why = "The volume's disk was taken from this node, and no container has its file system any more"
	case v.isOrphaned(ctx):
		why = "The volume's mount was taken away, as an engine does that starts after a crash, and no container has it"
	case v.isWritten() && !v.backed, v.unbackedSince.IsZero(): // the kernel writes for minutes what a dead container left
		v.unbackedSince = time.Now()
		return Undecided, nil
	case time.Since(v.unbackedSince) < unbackedTimeout:
		return Undecided, nil
	}
	v.Log().WithField("id", e.Volume).WithField("ids", e.IDs()).Warn(why + ": its mount IDs are dropped")
	return Abandoned, nil
}

// Users tells who has the volume's file system mounted, other than blockvol itself. It may be called at any time.
func (v *Volume) Users(ctx context.Context) (mount.Users, error) {
	e := v.Entry()
	if e == nil {
		return nil, nil
	}
	dev, err := v.deviceOf(ctx, e)
	if err != nil || dev == (mount.Device{}) {
		return nil, err
	}
	var targets []string
	for _, use := range e.Uses {
		if use.Target != "" {
			targets = append(targets, use.Target)
		}
	}
	users, err := v.node.host.Users(ctx, dev, targets...)
	if err == nil {
		v.set(func() { v.users = users })
	}
	return users, err
}

// LastUsers is what Users has found last, at most half a minute ago unless the kernel does not answer. It waits for nothing.
func (v *Volume) LastUsers() mount.Users {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.users
}

// isOrphaned tells whether blockvol's own mount of the volume is gone. An engine that starts after a crash takes it away, and so
// does one that disables the plugin. No container can come to use what was answered before; whoever wants the volume mounts it
// again.
func (v *Volume) isOrphaned(ctx context.Context) bool {
	dev, err := v.currentDevice(ctx)
	if err != nil || dev == (mount.Device{}) {
		return false
	}
	staged, err := v.node.host.IsStaged(ctx, v.dir, dev)
	return err == nil && !staged
}

// activeFor is how long a device counts as active after it was seen to be: two looks may follow one another at once.
const activeFor = 15 * time.Second

// isActive tells whether anything was read from or written to the volume's device since the last look, or a short time before.
func (v *Volume) isActive() bool {
	_, _, known := v.lookAtDevice()
	v.mu.Lock()
	defer v.mu.Unlock()
	return known && time.Since(v.activeAt) < activeFor
}

// isWritten tells whether anything was written to the volume's device since the last look: the engine fills a new volume from its image
// before the container's own mount exists. What is read may be for a look of ours, when the kernel was short of memory.
func (v *Volume) isWritten() bool {
	before, now, known := v.lookAtDevice()
	return known && now.Writes != before.Writes
}

func (v *Volume) lookAtDevice() (before, now mount.Activity, known bool) {
	now, err := v.node.host.Activity(v.Device())
	v.mu.Lock()
	defer v.mu.Unlock()
	before, v.activity = v.activity, now
	if err == nil && now != before {
		v.activeAt = time.Now()
	}
	return before, now, err == nil
}

// Activity is what the volume's device had done when it was last looked at.
func (v *Volume) Activity() mount.Activity {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.activity
}

// currentDevice returns the volume's device.
func (v *Volume) currentDevice(ctx context.Context) (mount.Device, error) {
	return v.deviceOf(ctx, v.Entry())
}

// deviceOf returns the device of the volume, whose entry is e. For one that has vanished it is the device that was seen last, since the kernel
// may hold its file system still; it is zero if none was ever seen.
func (v *Volume) deviceOf(ctx context.Context, e *Entry) (mount.Device, error) {
	dev, err := v.node.host.Find(ctx, e.Serial)
	if !errors.Is(err, mount.ErrNoDevice) {
		return dev, err
	}
	was := v.Device()
	if was != (mount.Device{}) && !e.Taken {
		v.Log().WithField("device", was.Path).Error("The volume's device has vanished from this node")
	}
	return was, nil
}

// Recognise asks the kernel which device the volume has on this node, and whether it is mounted at its path.
func (v *Volume) Recognise(ctx context.Context) {
	dev, err := v.node.host.Find(ctx, v.Entry().Serial)
	if err != nil {
		if !errors.Is(err, mount.ErrNoDevice) {
			v.Log().WithError(err).Warn("The device of a volume that this node may hold cannot be identified")
		}
		return
	}
	v.set(func() { v.device = dev })
	v.lookAtDevice()
	v.set(func() { v.activeAt = time.Time{} }) // what it did before is not known
	if staged, err := v.node.host.IsStaged(ctx, v.dir, dev); err == nil && staged && !v.Entry().Taken {
		v.set(func() { v.path = v.node.path(v.dir) })
		v.mountedFrom(dev)
	}
}

// GrowOnce lets the file system of a mounted volume fill a device that has become larger: who enlarges a disk in the cloud need
// not stop what uses it. What fails is tried again when the device has grown further, or at the next mount.
func (v *Volume) GrowOnce(ctx context.Context) {
	if v.Mountpoint() == "" {
		return
	}
	dev, err := v.node.host.Find(ctx, v.Entry().Serial)
	if err != nil || dev.Size <= v.fitted {
		return
	}
	if err := v.grow(ctx, dev); err != nil && ctx.Err() == nil {
		v.Log().WithField("id", v.Entry().Volume).WithField("device", dev.Path).WithError(err).
			Warn("The file system of a volume in use could not be grown to its device")
	}
}

// Grow lets the file system of a mounted volume fill its device, whatever became of earlier attempts.
func (v *Volume) Grow(ctx context.Context) error {
	dev, err := v.node.host.Find(ctx, v.Entry().Serial)
	if err != nil {
		return err
	}
	return v.grow(ctx, dev)
}

func (v *Volume) grow(ctx context.Context, dev mount.Device) error {
	grown, err := v.node.host.Grow(ctx, dev, v.dir)
	if ctx.Err() == nil {
		v.fitted = dev.Size
	}
	if grown {
		v.Log().WithField("id", v.Entry().Volume).WithField("device", dev.Path).WithField("size", volume.FormatSize(dev.Size)).
			Info("File system grown to its device, while in use")
	}
	return err
}

// Measure finds out how full the volume's file system is, unless another call of it still waits for the kernel, or nothing is mounted.
func (v *Volume) Measure(ctx context.Context) {
	v.mu.Lock()
	dev, skip := v.device, v.measuring || v.path == ""
	v.measuring = v.measuring || !skip
	v.mu.Unlock()
	if skip {
		return
	}
	space, err := v.node.host.Space(ctx, v.dir, dev)
	v.set(func() {
		v.measuring = false
		v.failed = errors.Is(err, unix.EIO)
		if err == nil {
			v.space, v.spaceAt = space, time.Now()
		}
	})
}

// Space is how full the mounted file system was, and when; zero if that is not known. It waits for nothing.
func (v *Volume) Space() (mount.Space, time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.path == "" {
		return mount.Space{}, time.Time{}
	}
	return v.space, v.spaceAt
}
