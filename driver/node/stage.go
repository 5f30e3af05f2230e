package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// freeTimeout is how long the kernel may hold a file system after its last mount here is gone: the time that a dead
// container's mounts take to be torn down.
const freeTimeout = 20 * time.Second

// Cloud answers what a node has to know before it formats a disk.
type Cloud interface {
	// AsHolder returns what the cloud says of the volume, from a time at which this node held it.
	AsHolder(ctx context.Context, vol *providers.Volume) (*providers.Volume, error)
	// Formatted records that the volume was formatted, for every node to know.
	Formatted(ctx context.Context, vol *providers.Volume, fstype string) error
}

// WaitDevice waits for the kernel to show the volume's device.
func (v *Volume) WaitDevice(ctx context.Context, serial string) error {
	dev, err := v.node.host.Wait(ctx, serial)
	if err == nil {
		v.set(func() { v.device = dev })
	}
	return err
}

// WaitGone waits for the kernel to have let the volume's device go.
func (v *Volume) WaitGone(ctx context.Context) error {
	return v.node.host.WaitGone(ctx, v.Entry().Serial)
}

// IsStaged tells whether the kernel shows the volume's file system at its path now, on a device that still is the volume's: the
// mount of a disk that was taken away looks like any other.
func (v *Volume) IsStaged(ctx context.Context) bool {
	e := v.Entry()
	if e == nil || e.Taken || v.Mountpoint() == "" {
		return false
	}
	dev, err := v.node.host.Find(ctx, e.Serial)
	if was := v.Device(); err != nil || dev.Name != was.Name || dev.Major != was.Major || dev.Minor != was.Minor {
		return false
	}
	staged, err := v.node.host.IsStaged(ctx, v.dir, dev)
	if err == nil && !staged {
		v.set(func() { v.path = "" })
	}
	return err == nil && staged
}

// Stage brings up the file system on the volume's device, which WaitDevice has seen: it formats the device if it may, checks
// and mounts it. Then Mountpoint shows the file system of that device, or an error is returned.
func (v *Volume) Stage(ctx context.Context, vol *providers.Volume, cloud Cloud, progress volume.Progress) error {
	dev := v.Device()
	if dev.Size < vol.Size {
		return volume.Fail(volume.WrongDisk, fmt.Sprintf("device %s has %d bytes where the cloud says %d: it is not mounted", dev.Path, dev.Size, vol.Size),
			"if the volume has just been made larger, the kernel must look at it again")
	}
	set := volume.SettingsOf(vol.Record)
	if err := v.formatOnce(ctx, vol, dev, &set, cloud, progress); err != nil {
		return err
	}
	if err := v.bury(ctx, dev, set.FSType); err != nil {
		return err
	}
	progress.Step(volume.Step{Phase: volume.Checking})
	v.fitted = 0
	// Nothing is cut short: half an fsck is worse than a late one.
	path, err := v.node.host.Stage(context.WithoutCancel(ctx), dev, v.dir, mount.StageSpec{
		FSType: set.FSType, Layout: set.Layout, MountOptions: set.MountOptions, UID: set.UID, GID: set.GID, Mode: set.Mode,
		Checked: func() { progress.Step(volume.Step{Phase: volume.Mounting}) },
		Warn: func(err error) {
			v.fitted = dev.Size // and was told
			v.Log().WithError(err).Warn("The volume is mounted, but not as it should be")
		},
	})
	if errors.Is(err, mount.ErrBlank) {
		return lostData(dev)
	}
	if err != nil {
		return volume.Advise(err, cmp.Or(v.adviseTaken(ctx), advise(err, set, vol)))
	}
	if e := v.Entry(); e.Taken {
		v.reduce(e.but(func(e *Entry) { e.Taken = false }))
	}
	v.mountedFrom(dev)
	v.set(func() {
		v.path, v.fstype, v.staged = path, set.FSType, time.Now()
		v.space, v.spaceAt, v.users = mount.Space{}, time.Time{}, nil
	})
	return nil
}

// advise is what to do about a mount that failed because of options that were accepted when the volume was created.
func advise(err error, set volume.Settings, vol *providers.Volume) string {
	switch {
	case errors.Is(err, mount.ErrWrongFS) && vol.Snapshot != "":
		return fmt.Sprintf("if it was created with another fstype than snapshot %s has, remove it and create it again without", vol.Snapshot)
	case errors.Is(err, mount.ErrInvalid) && len(set.MountOptions) > 0:
		return fmt.Sprintf("if its mount-options %q are the reason and it is new, remove it and create it again with others; if it holds data, create another volume from a snapshot of it, with mount-options=defaults",
			strings.Join(set.MountOptions, ","))
	}
	return ""
}

// formatOnce formats the device if it has never held data, by what both the device and the cloud say. It completes vol and set
// with what the cloud has said last. Package mount refuses any device that is not blank, whatever is asked here.
func (v *Volume) formatOnce(ctx context.Context, vol *providers.Volume, dev mount.Device, set *volume.Settings, cloud Cloud, progress volume.Progress) error {
	if set.Formatted && set.FSType != "" {
		return nil // whether it still holds what it should, mount.Host.Stage sees
	}
	contents, err := v.node.host.Probe(ctx, dev)
	if err != nil {
		return err
	}
	e := v.Entry()
	if !set.Formatted && vol.Snapshot == "" && (contents.Blank || e.Formatting) {
		now, err := cloud.AsHolder(ctx, vol)
		if err != nil {
			return err
		}
		*vol, *set = *now, volume.SettingsOf(now.Record)
	}
	// From here on nothing is cut short: half a mkfs is worse than a late one.
	ctx = context.WithoutCancel(ctx)
	switch {
	case set.Formatted && contents.Blank, contents.Blank && vol.Snapshot != "":
		return lostData(dev)
	case set.Formatted && contents.FSType == "":
		return notOurs(contents)
	case set.Formatted:
		set.FSType = contents.FSType
		return nil
	case contents.Blank, e.Formatting:
		progress.Step(volume.Step{Phase: volume.Formatting})
		if err := v.format(ctx, vol, dev, *set); err != nil {
			return err
		}
	case contents.FSType != set.FSType:
		return notOurs(contents)
	}
	// Just formatted, or formatted by an attempt that could not say so.
	return cloud.Formatted(ctx, vol, set.FSType)
}

// format formats the device. The journal says so from before the first byte until after the last.
func (v *Volume) format(ctx context.Context, vol *providers.Volume, dev mount.Device, set volume.Settings) error {
	formatting := func(is bool) error { return v.write(v.Entry().but(func(e *Entry) { e.Formatting = is })) }
	err := v.node.host.Format(ctx, dev, mount.FormatSpec{
		FSType: set.FSType, Options: set.MkfsOptions, Size: vol.Size,
		Begin: func(context.Context) error { return formatting(true) }, Begun: v.Entry().Formatting,
	})
	switch {
	case err != nil && len(set.MkfsOptions) > 0:
		return volume.Advise(err, fmt.Sprintf("it holds no data: if its mkfs-options %q are the reason, remove it and create it again with others", strings.Join(set.MkfsOptions, " ")))
	case err != nil:
		return err
	}
	if err := formatting(false); err != nil {
		return err
	}
	v.Log().WithField("device", dev.Path).WithField("fstype", set.FSType).Info("Volume formatted")
	return nil
}

// FinishFormat completes a format that a crash cut short, before this node releases the volume: on another node the remains
// would be bytes that nobody knows, and be left alone. The cloud says of the volume what vol is, and that this node holds it or
// not.
func (v *Volume) FinishFormat(ctx context.Context, vol *providers.Volume, held bool, cloud Cloud, progress volume.Progress) error {
	e := v.Entry()
	dev, err := v.node.host.Find(ctx, e.Serial)
	if vol.ID != e.Volume || errors.Is(err, mount.ErrNoDevice) && !held {
		return nil
	}
	if err != nil {
		return err
	}
	set := volume.SettingsOf(vol.Record)
	return v.formatOnce(ctx, vol, dev, &set, cloud, progress)
}

// Unstage unmounts the volume, and waits for the kernel to hold no file system on its device. Never lazy, never forced: what is
// busy stays.
func (v *Volume) Unstage(ctx context.Context, progress volume.Progress) error {
	progress.Step(volume.Step{Phase: volume.Unmounting})
	if err := v.node.host.Unstage(ctx, v.dir); err != nil {
		return err
	}
	v.set(func() { v.path = "" })
	if err := v.WaitFree(ctx, progress); err != nil {
		return err
	}
	v.set(func() { v.from = mount.Device{} })
	return nil
}

// Unmount takes away what is mounted at the volume's path, of a volume of which this node has nothing.
func (v *Volume) Unmount(ctx context.Context) error { return v.node.host.Unstage(ctx, v.dir) }

// WaitFree waits for the kernel to hold no file system on the device, in whichever mount namespace.
func (v *Volume) WaitFree(ctx context.Context, progress volume.Progress) error {
	dev, err := v.currentDevice(ctx)
	if err != nil || dev == (mount.Device{}) {
		return err
	}
	progress.Step(volume.Step{Phase: volume.WaitingForProcesses})
	ctx, cancel := context.WithTimeout(ctx, freeTimeout)
	defer cancel()
	return v.node.host.WaitFree(ctx, dev)
}

// notOurs is the error for a disk that holds something else than the volume's file system.
func notOurs(contents mount.Contents) error {
	return volume.Fail(volume.WrongDisk, fmt.Sprintf("the disk holds %s, which is not the volume's file system: it is left as it is", strings.Join(contents.Found, ", ")),
		"if the volume is new and this is of no use, remove the volume and create it again")
}

// lostData is the error for a disk that should hold data and is blank.
func lostData(dev mount.Device) error {
	return volume.Fail(volume.WrongDisk, "the disk is blank but was formatted before: it is not formatted again, since its data may have been lost or another disk be attached",
		fmt.Sprintf("compare device %s with the cloud's records, and restore a snapshot or remove the volume", dev.Path))
}
