package mount

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// attachMount attaches a detached mount at a directory, which it makes. Errors: ErrOccupied.
func attachMount(m *os.File, path string) error {
	if err := makeMountpoint(path); err != nil {
		return err
	}
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(fmt.Errorf("the kernel refuses the mount at %s: %w", path, err), removeMountpoint(path))
	}
	return nil
}

// makeMountpoint makes the directory that a volume is mounted on: empty, and closed to everyone but root, so that whoever opens it
// without the volume sees nothing and writes nothing. Errors: ErrOccupied.
func makeMountpoint(path string) error {
	err := unix.Mkdir(path, 0)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("directory %s cannot be made: %w", path, err)
	}
	// A crash left it, or somebody made it.
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("directory %s cannot be used: %w", path, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a directory; find out what made it and move it away", ErrOccupied, path)
	}
	names, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("directory %s cannot be read: %w", path, err)
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: directory %s contains %q though no volume is mounted there, so something wrote it by mistake; move it away", ErrOccupied, path, names[0].Name())
	}
	if err := os.Chmod(path, 0); err != nil {
		return fmt.Errorf("directory %s cannot be closed to others: %w", path, err)
	}
	return nil
}

func removeMountpoint(path string) error {
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("directory %s, where nothing is mounted any more, cannot be removed: %w", path, err)
	}
	return nil
}

// unmountAt unmounts everything that is mounted at the path, and removes the directory.
func (h *Host) unmountAt(path string) error {
	for {
		if done, err := h.unmount(path); err != nil {
			return err
		} else if !done {
			return removeMountpoint(path)
		}
	}
}

// unmount unmounts what is on top at the path. It returns false if nothing is mounted there. Errors: ErrBusy.
func (h *Host) unmount(path string) (bool, error) {
	err := unmountSoon(path)
	switch {
	case err == nil, errors.Is(err, unix.EINTR):
		return true, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EBUSY):
		return false, fmt.Errorf("%w: %s stays mounted because of %s", ErrBusy, path, h.usersAt(path))
	}
	return false, fmt.Errorf("%s cannot be unmounted: %w", path, err)
}

// unmountSoon unmounts what nobody uses. Programs that a process is starting have copies of its files until their exec, of which there
// is no notice: it retries for a second.
func unmountSoon(path string) error {
	err := error(unix.EBUSY)
	for wait := 50 * time.Microsecond; errors.Is(err, unix.EBUSY) && wait < time.Second; wait *= 2 {
		if err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
			time.Sleep(wait)
		}
	}
	return err
}
