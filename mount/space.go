package mount

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Space is how full a file system is.
type Space struct {
	Total, Used, Available int64 // bytes; Available is what is left for others than root
	Inodes, InodesUsed     int64 // 0 for a file system that has no fixed number of inodes, as btrfs
}

// Space tells how full the file system staged at dir is. No unmount of the directory begins meanwhile. It may have to wait for the
// disk inside the kernel, which no context can end.
// Errors: ErrNotStaged.
func (h *Host) Space(ctx context.Context, dir string, disk Device) (Space, error) {
	path, err := h.pathOf(dir)
	if err != nil {
		return Space{}, err
	}
	release, err := h.claimDir(ctx, path)
	if err != nil {
		return Space{}, err
	}
	defer release() // after root is closed, which would be in the way of an unmount
	top, err := h.topOf(disk)
	if err != nil {
		return Space{}, err
	}
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Space{}, fmt.Errorf("%w: %s cannot be opened: %w", ErrNotStaged, path, err)
	}
	defer root.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return Space{}, fmt.Errorf("the file system at %s cannot be examined: %w", path, err)
	}
	fstype := ""
	if st.Type == unix.BTRFS_SUPER_MAGIC {
		fstype = "btrfs"
	}
	if err := verifyDeviceOf(root, top, fstype); err != nil {
		return Space{}, fmt.Errorf("%w: another file system is at %s: %w", ErrNotStaged, path, err)
	}
	return Space{
		Total: int64(st.Blocks) * st.Frsize, Used: int64(st.Blocks-st.Bfree) * st.Frsize, Available: int64(st.Bavail) * st.Frsize,
		Inodes: int64(st.Files), InodesUsed: int64(st.Files - st.Ffree),
	}, nil
}
