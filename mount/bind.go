package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Bind shows a staged volume at one more path, for one consumer: the target, an absolute path outside Config.Published. A
// volume can be bound at any number of targets, each read-only or as it is staged. Bind makes the target; what is there
// already must be an empty directory.
//
// It answers when the kernel's mount table shows the file system of the volume at the target, on top. What is bound there so
// already stays. Until the volume is there, read-only if it is to be, nothing is: there is no moment at which a consumer could
// write to what it may only read. Mounts that a consumer makes inside the target do not appear at the other targets, nor do
// they keep the volume from being unstaged. On error nothing stays mounted at the target.
//
// Errors: ErrNotStaged; ErrOccupied for files or another mount at the target, also the volume's own if it is bound there for
// reading where it should be for writing, or the other way round; ErrInvalid for a target that cannot be one; ErrNoTool on kernels
// before 5.12.
func (h *Host) Bind(ctx context.Context, disk Device, dir, target string, readOnly bool) error {
	staged, err := h.pathOf(dir)
	if err != nil {
		return err
	}
	if target, err = h.targetPath(target); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	releaseStaged, err := h.claimDir(ctx, staged)
	if err != nil {
		return err
	}
	defer releaseStaged()
	releaseTarget, err := h.claimDir(ctx, target)
	if err != nil {
		return err
	}
	defer releaseTarget()
	top, err := h.topOf(disk)
	if err != nil {
		return err
	}
	root, m, err := openStaged(staged, top)
	if err != nil {
		return fmt.Errorf("the volume cannot be shown at %s: %w", target, err)
	}
	defer root.Close()
	if done, err := boundAt(target, top, m, readOnly); done || err != nil {
		return err
	}
	bound, err := cloneMount(root, readOnly)
	if err != nil {
		return fmt.Errorf("the volume of device %s cannot be shown at %s: %w", top.Path, target, err)
	}
	defer bound.Close() // what is attached nowhere by then is unmounted with it
	if err := attachMount(bound, target); err != nil {
		return fmt.Errorf("the volume of device %s cannot be shown: %w", top.Path, err)
	}
	if done, err := boundAt(target, top, m, readOnly); !done {
		if err == nil {
			err = fmt.Errorf("the volume of device %s was mounted at %s but is not seen there", top.Path, target)
		}
		bound.Close() // open files keep a mount busy
		return errors.Join(err, h.unmountAt(target))
	}
	return nil
}

// Unbind undoes Bind: it unmounts the volume at the target, and removes the directory. Nothing mounted there is success. It never
// unmounts lazily: a mount in use stays. It unmounts nothing but the volume.
// Errors: ErrBusy; ErrOccupied for another mount at the target; ErrInvalid for a path that cannot be a target.
func (h *Host) Unbind(ctx context.Context, disk Device, target string) error {
	target, err := h.targetPath(target)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	release, err := h.claimDir(ctx, target)
	if err != nil {
		return err
	}
	defer release()
	top, err := h.topOf(disk)
	if err != nil {
		return err
	}
	for {
		m, err := mountAt(target)
		switch {
		case err != nil:
			return err
		case m == nil:
			return removeBare(target)
		case !isOn(m, top):
			return fmt.Errorf("%w: %s (%s) is mounted at %s, over or in place of the volume of device %s; unmount it first", ErrOccupied, m.Source, m.FSType, target, top.Path)
		}
		if _, err := h.unmount(target); err != nil {
			return err
		}
	}
}

// targetPath returns a target as the kernel's mount table shows it: without links on the way. Errors: ErrInvalid; ENOENT if the
// directory that it is to be in is missing.
func (h *Host) targetPath(target string) (string, error) {
	if !filepath.IsAbs(target) || filepath.Clean(target) != target || target == "/" {
		return "", fmt.Errorf("%w: a volume cannot be shown at %q: it must be an absolute path without \".\" and \"..\" in it", ErrInvalid, target)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(target))
	if err != nil {
		return "", fmt.Errorf("a volume cannot be shown at %s: %w", target, err)
	}
	path := filepath.Join(parent, filepath.Base(target))
	for _, own := range []string{h.published, h.scratch} {
		if within(own, path) || within(path, own) {
			return "", fmt.Errorf("%w: a volume cannot be shown at %s: %s is for blockvol's own mounts", ErrInvalid, target, own)
		}
	}
	return path, nil
}

// canonicalTargets returns targets as the kernel's mount table shows them, sorted. Nothing is mounted at one that has no directory
// to be in.
func (h *Host) canonicalTargets(targets []string) []string {
	var paths []string
	for _, target := range targets {
		if path, err := h.targetPath(target); err == nil {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// boundAt tells whether a staged volume is bound at the target, and so. Errors: ErrOccupied for another mount.
func boundAt(target string, top Device, staged *mountinfo.Info, readOnly bool) (bool, error) {
	m, err := mountAt(target)
	if err != nil || m == nil {
		return false, err
	}
	if !isOn(m, top) || m.Root != staged.Root {
		return false, fmt.Errorf("%w: %s of %s (%s) is mounted at %s, where the volume of device %s is to be shown; unmount it first", ErrOccupied, m.Root, m.Source, m.FSType, target, top.Path)
	}
	if isReadOnly(m) != (readOnly || isReadOnly(staged)) {
		return false, fmt.Errorf("%w: the volume of device %s is shown at %s already, though read-only there is %t where %t was asked for; end that first", ErrOccupied, top.Path, target, isReadOnly(m), readOnly)
	}
	return true, nil
}

// cloneMount makes a mount of what an open directory shows, which is attached nowhere. It has the attributes of the directory's
// mount, but that it may be read-only, and that mounts made in one do not appear in the other.
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
