package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// kernelSysfs is where the kernel shows its own state, whatever Config.Sysfs is.
const kernelSysfs = "/sys"

// IsStaged tells whether the volume on the disk is staged at dir: whether who opens that path now gets the volume's file system,
// according to the kernel's mount table.
func (h *Host) IsStaged(ctx context.Context, dir string, disk Device) (bool, error) {
	path, err := h.pathOf(dir)
	if err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	top, err := h.topOf(disk)
	if err != nil {
		return false, err
	}
	m, err := mountAt(path)
	if err != nil || m == nil {
		return false, err
	}
	return isOf(m, top), nil
}

// openStaged opens the directory where a volume is staged, and returns it with its mount, which cannot be unmounted while the
// directory is open. Errors: ErrNotStaged.
func openStaged(path string, top Device) (*os.File, *mountinfo.Info, error) {
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s cannot be opened: %w", ErrNotStaged, path, err)
	}
	m, err := mountOf(int(root.Fd()), "", path)
	switch {
	case err != nil:
	case m == nil:
		err = fmt.Errorf("%w: nothing is mounted at %s", ErrNotStaged, path)
	default:
		if err = verifyDeviceOf(root, top, m.FSType); err != nil {
			err = fmt.Errorf("%w: another file system is mounted at %s: %w", ErrNotStaged, path, err)
		}
	}
	if err != nil {
		root.Close()
		return nil, nil, err
	}
	return root, m, nil
}

// mountAt returns the mount at a path, the top one if there are several, or nil if there is none.
func mountAt(path string) (*mountinfo.Info, error) { return mountOf(unix.AT_FDCWD, path, path) }

// mountOf is mountAt for a path that is name in an open directory, or the directory itself if name is empty.
func mountOf(dirfd int, name, path string) (*mountinfo.Info, error) {
	var st unix.Statx_t
	err := unix.Statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s cannot be examined: %w", path, err)
	case st.Mask&unix.STATX_MNT_ID == 0 || st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return nil, fmt.Errorf("the kernel does not say which mount %s is; Linux 5.10 or later is needed", path)
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return nil, nil
	}
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		is := uint64(m.ID) == st.Mnt_id
		return !is, is
	})
	if err != nil {
		return nil, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	if len(found) == 0 || found[0].Mountpoint != path {
		return nil, nil // unmounted meanwhile
	}
	return found[0], nil
}

// mountsUnder returns the mounts of this process's namespace at or under a path, in the order in which they were made.
func mountsUnder(path string) ([]*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	return found, nil
}

// isOf tells whether a mount in this namespace is of the device's file system.
func isOf(m *mountinfo.Info, dev Device) bool {
	if m.FSType != "btrfs" {
		return uint32(m.Major) == dev.Major && uint32(m.Minor) == dev.Minor
	}
	root, err := os.OpenFile(m.Mountpoint, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer root.Close()
	return verifyDeviceOf(root, dev, m.FSType) == nil
}

// verifyDeviceOf checks that an open directory is on the device's file system, and that this file system has no other device.
// Errors: ErrWrongDevice.
func verifyDeviceOf(root *os.File, dev Device, fstype string) error {
	if fstype != "btrfs" {
		var st unix.Stat_t
		if err := unix.Fstat(int(root.Fd()), &st); err != nil {
			return fmt.Errorf("the file system of device %s cannot be examined: %w", dev.Path, err)
		}
		if unix.Major(st.Dev) != dev.Major || unix.Minor(st.Dev) != dev.Minor {
			return fmt.Errorf("%w: the kernel mounted device %d:%d instead of %s (%d:%d)", ErrWrongDevice, unix.Major(st.Dev), unix.Minor(st.Dev), dev.Path, dev.Major, dev.Minor)
		}
		return nil
	}
	// A btrfs has a device number of its own. The kernel lists its devices under the id of the file system.
	var info btrfsInfo
	if err := ioctl(root, btrfsGetInfo, &info); err != nil {
		return fmt.Errorf("the btrfs on device %s cannot be examined: %w", dev.Path, err)
	}
	id := info.fsid
	dir := filepath.Join(kernelSysfs, "fs/btrfs", fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]), "devices")
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("the devices of the btrfs on device %s cannot be listed: %w", dev.Path, err)
	}
	if len(names) != 1 || names[0].Name() != kernelNameOf(dev) {
		return fmt.Errorf("%w: the btrfs that the kernel mounted for device %s is on %v: a volume's file system must have one device, and a copy of a mounted btrfs a UUID of its own (btrfstune -u)", ErrWrongDevice, dev.Path, names)
	}
	return nil
}

// kernelName returns the kernel's name of a block device, or "" if there is none of that number.
func kernelName(n devno) string {
	link, err := os.Readlink(filepath.Join(kernelSysfs, "dev/block", n.String()))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

// kernelNameOf returns the kernel's name of a device, which differs from the one in Device if Config.Sysfs is not the kernel's. A
// device that was pulled keeps its name.
func kernelNameOf(dev Device) string {
	if name := kernelName(dev.number()); name != "" {
		return name
	}
	return dev.Name
}
