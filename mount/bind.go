package mount

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Bind shows the volume staged at dir at one more path, for one consumer. target is an absolute path outside Config.Published. A
// volume may be bound at any number of targets, each of them read-only or as it is staged. Bind makes the target; if it exists, it
// must be an empty directory.
//
// Bind returns when the kernel's mount table shows the volume's file system at the target, on top. A target where the volume is
// bound already stays as it is. The mount is read-only before it is attached, so no consumer can write through it for a moment.
// Mounts that a consumer makes inside the target do not appear elsewhere. On error nothing stays mounted at the target.
//
// Errors: ErrNotStaged; ErrOccupied if files or another mount are at the target, also if the volume itself is bound there but is
// read-only where it should not be, or the reverse; ErrInvalid for a path that cannot be a target; ErrNoTool on kernels before 5.12.
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
		return fmt.Errorf("%w; device %s is not mounted at %s", err, top.Path, target)
	}
	defer root.Close()
	if done, err := isBoundAt(target, top, m, readOnly); done || err != nil {
		return err
	}
	clone, err := cloneMount(root, readOnly)
	if err != nil {
		return fmt.Errorf("%w; device %s is not mounted at %s", err, top.Path, target)
	}
	defer clone.Close() // unmounts it if it is attached nowhere by then
	if err := attachMount(clone, target); err != nil {
		return fmt.Errorf("%w; device %s is not mounted there", err, top.Path)
	}
	if done, err := isBoundAt(target, top, m, readOnly); !done {
		if err == nil {
			err = fmt.Errorf("device %s was mounted at %s, but the mount table does not show it there", top.Path, target)
		}
		clone.Close() // open files keep a mount busy
		return errors.Join(err, h.unmountAt(target))
	}
	return nil
}

// Unbind undoes Bind: it unmounts the volume at the target, and removes the directory. If nothing is mounted there, that is success.
// It never unmounts lazily: a mount that is in use stays. It unmounts only the volume.
// Errors: ErrBusy; ErrOccupied if another mount is at the target; ErrInvalid for a path that cannot be a target.
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
			return removeMountpoint(target)
		case !isOf(m, top):
			return fmt.Errorf("%w: %s (%s) is mounted at %s instead of device %s; unmount it first", ErrOccupied, m.Source, m.FSType, target, top.Path)
		}
		if _, err := h.unmount(target); err != nil {
			return err
		}
	}
}

// targetPath returns a target as it is in mount tables: without links in the path to it. Errors: ErrInvalid; ENOENT if its parent
// directory is missing.
func (h *Host) targetPath(target string) (string, error) {
	if !filepath.IsAbs(target) || filepath.Clean(target) != target || target == "/" {
		return "", fmt.Errorf("%w: %q cannot be a target: it must be an absolute path without \".\" and \"..\"", ErrInvalid, target)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(target))
	if err != nil {
		return "", fmt.Errorf("%s cannot be a target: %w", target, err)
	}
	path := filepath.Join(parent, filepath.Base(target))
	for _, own := range []string{h.published, h.scratch} {
		if within(own, path) || within(path, own) {
			return "", fmt.Errorf("%w: %s cannot be a target: blockvol uses %s itself", ErrInvalid, target, own)
		}
	}
	return path, nil
}

// canonicalTargets returns targets as they are in mount tables, sorted. It omits those without a parent directory: nothing is
// mounted there.
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

// isBoundAt tells whether a staged volume is bound at the target, read-only or not as it should be. Errors: ErrOccupied.
func isBoundAt(target string, top Device, staged *mountinfo.Info, readOnly bool) (bool, error) {
	m, err := mountAt(target)
	if err != nil || m == nil {
		return false, err
	}
	if !isOf(m, top) || m.Root != staged.Root {
		return false, fmt.Errorf("%w: %s of %s (%s) is mounted at %s, the target for device %s; unmount it first", ErrOccupied, m.Root, m.Source, m.FSType, target, top.Path)
	}
	if isReadOnly(m) != (readOnly || isReadOnly(staged)) {
		access := map[bool]string{true: "read-only", false: "writable"}
		return false, fmt.Errorf("%w: device %s is mounted at %s already, %s instead of %s; unmount it there first", ErrOccupied, top.Path, target, access[isReadOnly(m)], access[readOnly])
	}
	return true, nil
}
