package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	dataDir     = "data"
	unfinished  = ".data.unfinished" // is renamed to dataDir when it is complete
	defaultMode = 0o755
)

func openDir(at *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(at.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ensureData makes the directory that LayoutData shows, if the file system is new. It gets its name when it is complete. Errors:
// ErrForeignLayout for a file system that has other files instead.
func ensureData(root *os.File, dev Device, spec StageSpec, readOnly bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(root.Fd()), dataDir, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil
	case err == nil:
		return fmt.Errorf("%w: %q on device %s is not a directory", ErrForeignLayout, dataDir, dev.Path)
	case !errors.Is(err, unix.ENOENT):
		return fmt.Errorf("directory %q of device %s cannot be examined: %w", dataDir, dev.Path, err)
	}
	names, err := root.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("the file system on device %s cannot be read: %w", dev.Path, err)
	}
	for _, name := range names {
		if name != "lost+found" && name != unfinished {
			return fmt.Errorf("%w: device %s has %q but no directory %q, so blockvol did not format it or somebody moved its data; an empty directory is not shown instead", ErrForeignLayout, dev.Path, name, dataDir)
		}
	}
	if readOnly {
		return fmt.Errorf("%w: device %s has no directory %q yet, and none can be made on a read-only mount; the volume is empty: remove it and create it again without the mount option ro", ErrForeignLayout, dev.Path, dataDir)
	}
	if err := makeData(root, spec); err != nil {
		return fmt.Errorf("directory %q cannot be made on device %s: %w", dataDir, dev.Path, err)
	}
	return nil
}

func makeData(root *os.File, spec StageSpec) error {
	at := int(root.Fd())
	if err := unix.Unlinkat(at, unfinished, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := unix.Mkdirat(at, unfinished, 0o700); err != nil {
		return err
	}
	dir, err := openDir(root, unfinished)
	if err != nil {
		return err
	}
	defer dir.Close()
	uid, gid, mode := 0, 0, uint32(defaultMode)
	if spec.UID != nil {
		uid = *spec.UID
	}
	if spec.GID != nil {
		gid = *spec.GID
	}
	if spec.Mode != nil {
		mode = unixMode(*spec.Mode)
	}
	// The mode is set last: a change of owner may clear bits of it.
	if err := dir.Chown(uid, gid); err != nil {
		return err
	}
	if err := unix.Fchmod(int(dir.Fd()), mode); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return err
	}
	if err := unix.Renameat(at, unfinished, at, dataDir); err != nil {
		return err
	}
	return root.Sync()
}

func unixMode(m os.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, unixBit := range map[os.FileMode]uint32{os.ModeSetuid: unix.S_ISUID, os.ModeSetgid: unix.S_ISGID, os.ModeSticky: unix.S_ISVTX} {
		if m&bit != 0 {
			mode |= unixBit
		}
	}
	return mode
}
