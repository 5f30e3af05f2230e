package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountDetached mounts a file system without attaching it anywhere. It is unmounted when the returned file, and all mounts made of
// it, are closed. Errors: ErrDamaged, ErrBusy, ErrUnreadable, ErrNoTool, ErrInvalid.
func mountDetached(dev Device, fstype string, options parsedOptions) (*os.File, error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%w: the kernel of this node has no %s, the file system of device %s", ErrNoTool, fstype, dev.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("file systems cannot be mounted here (fsopen: %w); CAP_SYS_ADMIN and Linux 5.10 are needed", err)
	}
	fsContext := os.NewFile(uintptr(fd), "fsopen")
	defer fsContext.Close()
	for _, o := range append([]string{"source=" + dev.Path}, options.flags...) {
		key, value, hasValue := strings.Cut(o, "=")
		if hasValue {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, key)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the kernel refuses mount option %q of %s for device %s%s: %w", ErrInvalid, o, fstype, dev.Path, kernelMessages(fd), err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, mountError(dev, fstype, kernelMessages(fd), err)
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, options.attrs)
	if err != nil {
		return nil, fmt.Errorf("the %s on device %s cannot be mounted%s: %w", fstype, dev.Path, kernelMessages(fd), err)
	}
	return os.NewFile(uintptr(mfd), dev.Path), nil
}

// mountError returns the error for a file system that the kernel refused to mount.
func mountError(dev Device, fstype, messages string, err error) error {
	var kind error
	var advice string
	switch {
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
		kind, advice = ErrDamaged, fmt.Sprintf("; repair it by hand (%s) or restore a snapshot", repairTool[fstype])
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		kind, advice = ErrBusy, "; something on this node has the device open, or a file system with the same UUID is mounted"
	case errors.Is(err, unix.EIO):
		kind = ErrUnreadable
	case errors.Is(err, unix.EINVAL): // a feature that this kernel lacks, or mount options that exclude each other
		kind = ErrInvalid
	default:
		return fmt.Errorf("the %s on device %s cannot be mounted%s: %w", fstype, dev.Path, messages, err)
	}
	return fmt.Errorf("%w: the %s on device %s cannot be mounted%s: %w%s", kind, fstype, dev.Path, messages, err, advice)
}

var repairTool = map[string]string{"ext4": "e2fsck -f", "xfs": "xfs_repair", "btrfs": "btrfs check"}

// kernelMessages returns what the kernel has reported about a file system context, in parentheses, or "".
func kernelMessages(fd int) string {
	var messages []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			break
		}
		// Each message begins with its level: "e ext4: Unknown parameter".
		line := strings.TrimSpace(string(buf[:n]))
		if len(line) > 2 && line[1] == ' ' {
			line = line[2:]
		}
		messages = append(messages, line)
	}
	if len(messages) == 0 {
		return ""
	}
	return " (" + strings.Join(messages, "; ") + ")"
}

// cloneDir makes a detached mount of a directory of a mount.
func cloneDir(m *os.File, name string) (*os.File, error) {
	fd, err := unix.OpenTree(int(m.Fd()), name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// cloneMount makes a detached mount of what an open directory shows. It has the attributes of the directory's mount, but may be
// read-only, and mounts made in one do not appear in the other. Errors: ErrNoTool.
func cloneMount(root *os.File, readOnly bool) (*os.File, error) {
	fd, err := unix.OpenTree(int(root.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	m := os.NewFile(uintptr(fd), root.Name())
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		m.Close()
		if errors.Is(err, unix.ENOSYS) {
			return nil, fmt.Errorf("%w: the kernel of this node has no mount_setattr; Linux 5.12 or later is needed", ErrNoTool)
		}
		return nil, err
	}
	return m, nil
}
