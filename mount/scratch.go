package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cloneAtPath does for kernels before 6.15 what cloneDir does for later ones: the mount is attached in the scratch directory
// while its directory is cloned. It closes root, a file of the mount.
func (h *Host) cloneAtPath(m, root *os.File, name string) (data *os.File, err error) {
	if err := h.prepareScratch(); err != nil {
		return nil, err
	}
	at := filepath.Join(h.scratch, name)
	if err := os.Mkdir(at, 0o700); errors.Is(err, fs.ErrExist) {
		_ = unmountSoon(at) // left by a call that could not unmount it
	} else if err != nil {
		return nil, err
	}
	defer func() {
		if e := unix.Rmdir(at); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", at, e))
		}
	}()
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		data, err = cloneDir(dir, dataDir)
		dir.Close()
	}
	root.Close() // open files keep a mount busy
	m.Close()
	if e := unmountSoon(at); e != nil {
		if data != nil {
			data.Close()
		}
		return nil, errors.Join(err, fmt.Errorf("scratch directory %s cannot be unmounted: %w", at, e))
	}
	return data, err
}

// clearScratch removes what a crash left in the scratch directory.
func (h *Host) clearScratch() error {
	left, err := mountsUnder(h.scratch)
	if err != nil {
		return err
	}
	// In reverse order, since one may be mounted inside another.
	for i := len(left) - 1; i >= 0; i-- {
		if left[i].Mountpoint == h.scratch {
			continue
		}
		if err := unix.Unmount(left[i].Mountpoint, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("%s, which an earlier run left mounted, cannot be unmounted: %w", left[i].Mountpoint, err)
		}
	}
	names, err := os.ReadDir(h.scratch)
	if err != nil {
		return fmt.Errorf("the scratch directory cannot be read: %w", err)
	}
	for _, e := range names {
		if err := unix.Rmdir(filepath.Join(h.scratch, e.Name())); err != nil {
			return fmt.Errorf("%s cannot be removed from the scratch directory %s, which must be empty: %w", e.Name(), h.scratch, err)
		}
	}
	return nil
}

// makeScratchPrivate makes the scratch directory a mount that does not propagate the mounts inside it.
func (h *Host) makeScratchPrivate() error {
	found, err := mountsUnder(h.scratch)
	if err != nil {
		return err
	}
	mounted := false
	for _, m := range found {
		mounted = mounted || m.Mountpoint == h.scratch
	}
	if !mounted {
		if err := unix.Mount(h.scratch, h.scratch, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("the scratch directory %s cannot be made a mount: %w", h.scratch, err)
		}
	}
	if err := unix.Mount("", h.scratch, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("the scratch directory %s cannot be made private: %w", h.scratch, err)
	}
	return nil
}
