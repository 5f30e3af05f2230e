package mount

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Layouts of a volume: which part of its file system a container sees. The layout of a volume is decided once and never changes.
const (
	LayoutData = "data" // its directory "data", so that a new volume is empty, without lost+found
	LayoutRoot = "root" // its root, whatever is there: for a disk that blockvol did not format
)

// StageSpec is how a volume is to be mounted.
type StageSpec struct {
	FSType       string   // one of FSTypes, and what the device must have
	Layout       string   // LayoutData or LayoutRoot
	MountOptions []string // one per element; CheckOptions accepts them, or did when the volume was created

	// UID, GID and Mode are set on the directory of LayoutData when it is made, and never again. Default root, 0755.
	UID, GID *int
	Mode     *os.FileMode

	// Checked, if set, is called when the file system was checked, before it is mounted. It is not if that is mounted already.
	Checked func()

	// Warn, if set, is called with an error that does not prevent the mount: a file system that could not be grown to its
	// device. If it is not set, Stage fails with that error.
	Warn func(error)
}

// Stage brings the volume's file system up on this node, at the returned path, which is dir under Config.Published. e2fsck checks
// an ext4 first; xfs and btrfs repair themselves when they are mounted. A file system smaller than its device is grown. With
// the mount option "ro" nothing is checked, grown or made.
//
// Stage returns when the kernel's mount table shows the file system of that device at the path, on top. A volume that is staged
// already stays as it is, whatever the options. On error nothing stays mounted.
//
// Stage may have to wait for the disk inside the kernel, which no context can end. The end of ctx ends the programs, and the
// wait for other calls.
//
// Errors: ErrBlank, ErrWrongFS, ErrWrongDevice, ErrNoDevice, ErrDamaged, ErrBusy, ErrForeignLayout, ErrOccupied,
// ErrUnreadable, ErrNoTool, ErrInvalid.
func (h *Host) Stage(ctx context.Context, disk Device, dir string, spec StageSpec) (path string, err error) {
	if spec.Layout != LayoutData && spec.Layout != LayoutRoot {
		return "", fmt.Errorf("%w: layout %q is not one of %s, %s", ErrInvalid, spec.Layout, LayoutData, LayoutRoot)
	}
	if err := checkMountOptions(spec.FSType, spec.MountOptions); err != nil {
		return "", err
	}
	path, release, err := h.claimVolume(ctx, disk, dir)
	if err != nil {
		return "", err
	}
	defer release()

	f, err := h.open(disk, os.O_RDONLY) // open until it is mounted, so that no other disk gets its name
	if err != nil {
		return "", err
	}
	defer f.Close()
	top, device, err := h.openTop(disk)
	if err != nil {
		return "", err
	}
	defer device.Close()
	if done, err := isStagedAt(path, top, spec.Layout); done || err != nil {
		return path, err
	}
	options := parseOptions(spec.FSType, spec.MountOptions)
	if err := checkBeforeMount(ctx, top, spec.FSType, options.readOnly()); err != nil {
		return "", err
	}
	if spec.Checked != nil {
		spec.Checked()
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("device %s is not mounted: %w", top.Path, context.Cause(ctx))
	}
	m, err := mountDetached(top, spec.FSType, options)
	if err != nil {
		return "", err
	}
	defer m.Close() // unmounts what is attached nowhere by then
	volume, err := h.prepare(m, device, top, dir, spec, options.readOnly())
	if err != nil {
		return "", err
	}
	defer volume.Close()
	if err := attachMount(volume, path); err != nil {
		return "", fmt.Errorf("device %s is not mounted: %w", top.Path, err)
	}
	if done, err := isStagedAt(path, top, spec.Layout); !done {
		if err == nil {
			err = fmt.Errorf("device %s was mounted at %s, but the mount table does not show it there", top.Path, path)
		}
		volume.Close() // open files keep a mount busy
		m.Close()
		return "", errors.Join(err, h.unmountAt(path))
	}
	return path, nil
}

// isStagedAt tells whether the volume is staged at the path. Errors: ErrOccupied for another mount.
func isStagedAt(path string, top Device, layout string) (bool, error) {
	m, err := mountAt(path)
	if err != nil || m == nil {
		return false, err
	}
	root := "/"
	if layout == LayoutData {
		root = "/" + dataDir
	}
	if !isOf(m, top) || m.Root != root {
		return false, fmt.Errorf("%w: %s of %s (%s) is mounted at %s, the place for %s of device %s; unmount it first", ErrOccupied, m.Root, m.Source, m.FSType, path, root, top.Path)
	}
	return true, nil
}

// checkBeforeMount makes sure that a device has the file system, and that it is consistent. One that the kernel uses is mounted
// for a container that still runs: then it is mounted once more without a check, which would destroy it.
func checkBeforeMount(ctx context.Context, top Device, fstype string, readOnly bool) error {
	busy, err := isBusy(top)
	if err != nil || busy {
		return err
	}
	if err := verifyFS(ctx, top, fstype); err != nil {
		return err
	}
	if readOnly {
		return nil
	}
	return check(ctx, top, fstype)
}

// prepare grows a file system that is attached nowhere yet, makes what its layout needs, and returns the mount for containers.
func (h *Host) prepare(m, device *os.File, top Device, dir string, spec StageSpec, readOnly bool) (*os.File, error) {
	root, err := openDir(m, ".")
	if err != nil {
		return nil, fmt.Errorf("the file system of device %s cannot be opened: %w", top.Path, err)
	}
	defer root.Close()
	if err := verifyDeviceOf(root, top, spec.FSType); err != nil {
		return nil, err
	}
	if !readOnly {
		if _, err := grow(root, device, spec.FSType); err != nil {
			if spec.Warn == nil {
				return nil, err
			}
			spec.Warn(err)
		}
	}
	if spec.Layout == LayoutRoot {
		fd, err := unix.FcntlInt(m.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), dir), nil
	}
	if err := ensureData(root, top, spec, readOnly); err != nil {
		return nil, err
	}
	data, err := cloneDir(m, dataDir)
	if errors.Is(err, unix.EINVAL) || h.cloneAlwaysAtPath {
		if err == nil {
			data.Close()
		}
		data, err = h.cloneAtPath(m, root, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("directory %q of device %s cannot be mounted by itself: %w", dataDir, top.Path, err)
	}
	return data, nil
}

// Unstage unmounts what is mounted at dir under Config.Published, and removes the directory. If nothing is mounted there, that is
// success. It never unmounts lazily: a mount that is in use stays. When it returns, copies of the mount in other mount namespaces
// may still keep the file system mounted: see Busy. The kernel removes copies at this very directory when the directory is removed
// (since Linux 3.18), but processes in them keep the file system busy until they leave.
// Errors: ErrBusy.
func (h *Host) Unstage(ctx context.Context, dir string) error {
	path, err := h.pathOf(dir)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	release, err := h.claimDir(ctx, path)
	if err != nil {
		return err
	}
	defer release()
	return h.unmountAt(path)
}
