// Package mount is the Linux side of a node: it finds a disk by its identity, formats it if and only if it is blank, and
// shows its file system to containers at a path.
//
// # What it trusts
//
// A device is what sysfs says of it, never what a link under /dev is called. Whether a device is in use is what the kernel
// says, never what this process remembers. Only Format writes to a device on which no file system is mounted, apart from
// the file system's own checker, and it believes nothing that an earlier Probe found.
//
// # Disk and top
//
// A volume has two devices: the disk, which has its identity, and the top, which has its file system. They are one and the
// same unless something stands between them, as encryption does. The caller names the disk; Host finds the top, and nobody
// else needs to know it. Identity and the proof of being blank are the disk's, the file system's check, mount and growth the
// top's, and in use is a volume whose disk or top is.
//
// # How a volume comes up
//
// The file system is mounted with fsopen and fsmount (Linux 5.10 has them in full), so it exists as an open file and at no
// path while it is verified, grown and laid out; it cannot be seen, cloned into another mount namespace, or left behind by
// a crash. Only what containers shall see is then attached at the published path. Kernels before 6.15 cannot clone a
// directory out of a mount without a path: there, and only for that one step, it hangs at a path under Config.Scratch.
//
// The file system is grown with its own ioctl, as resize2fs, xfs_growfs and btrfs would do; ext4 wants CAP_SYS_RESOURCE
// for it, besides the CAP_SYS_ADMIN that everything here needs.
//
// Programs run are blkid, wipefs, mkfs.<type> and e2fsck, of util-linux, e2fsprogs, xfsprogs and btrfs-progs, found in
// PATH, without a shell, a terminal or an environment.
package mount

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config tells a Host where things are. Published and Buses are required.
type Config struct {
	// Published is the directory under which volumes are shown to containers. It must exist. For containers to see mounts
	// made after they started, it must be a mount of shared propagation; that is the business of whoever made it.
	Published string

	// Buses are where volumes appear, by the kernel's names: nvme, scsi, virtio, loop. A device on any other is none of ours.
	Buses []string

	// Scratch is a working directory of this Host alone, made if missing. Default /run/blockvol/staging. Nothing may be
	// kept under it. It is used on kernels before 6.15 only.
	Scratch string

	// Sysfs is where devices are identified, a sysfs mount. Default /sys. Another tree may stand there, for tests: a
	// directory block/<name> with dev, size and what tells bus and identity (see Device). It decides about identity only;
	// what the kernel holds is always read from /sys itself.
	Sysfs string

	// Dev has the nodes of block devices, under their kernel names. Default /dev.
	Dev string

	// Proc is a proc file system that shows the processes of the whole machine. Default /proc.
	Proc string
}

// Host is the Linux side of this node. Its methods may be called from any number of goroutines; calls that work on one
// device wait for each other, those on different devices do not.
type Host struct {
	published string
	scratch   string
	sysfs     string
	dev       string
	proc      string
	buses     map[string]bus

	identities shared[struct{}, map[identity][]string]
	mounts     shared[query, *mounts]

	uevents   *uevents
	lookEvery time.Duration // how often Wait looks at sysfs when no event comes: a net for events that were lost
	claims    claims

	lookTimeout time.Duration // the longest that the devices may take to tell their identities

	// topOf returns the device that has the file system of the volume on a disk: the disk itself, since nothing stands between
	// them yet. Tests put a device there.
	topOf func(disk Device) (top Device, err error)

	prepareScratch    func() error
	cloneAlwaysAtPath bool // tests of what older kernels need
}

// New makes a Host. It unmounts what a crash left under Scratch. Close releases it; mounts stay.
func New(cfg Config) (*Host, error) {
	h := &Host{
		scratch: cmp.Or(cfg.Scratch, "/run/blockvol/staging"),
		sysfs:   cmp.Or(cfg.Sysfs, "/sys"),
		dev:     cmp.Or(cfg.Dev, "/dev"),
		proc:    cmp.Or(cfg.Proc, "/proc"),

		lookEvery:   time.Second,
		lookTimeout: 10 * time.Second,

		buses: map[string]bus{},
	}
	h.topOf = func(disk Device) (Device, error) { return disk, nil }
	h.identities.look, h.mounts.look = h.readIdentities, h.mountsOf
	if cfg.Published == "" {
		return nil, errors.New("no directory was given under which volumes are to be shown")
	}
	for _, name := range cfg.Buses {
		b, known := buses[name]
		if !known {
			return nil, fmt.Errorf("disks on bus %q cannot be identified", name)
		}
		h.buses[name] = b
	}
	if len(h.buses) == 0 {
		return nil, errors.New("no bus was given on which volumes appear")
	}
	// The kernel's tables show paths without links, and are compared with these.
	var err error
	if h.published, err = canonical(cfg.Published); err != nil {
		return nil, fmt.Errorf("the directory for published volumes cannot be used: %w", err)
	}
	if err := os.MkdirAll(h.scratch, 0o700); err != nil {
		return nil, fmt.Errorf("the scratch directory cannot be made: %w", err)
	}
	if h.scratch, err = canonical(h.scratch); err != nil {
		return nil, fmt.Errorf("the scratch directory cannot be used: %w", err)
	}
	if within(h.published, h.scratch) || within(h.scratch, h.published) {
		return nil, fmt.Errorf("scratch directory %s and published directory %s must not contain one another", h.scratch, h.published)
	}
	if err := h.clearScratch(); err != nil {
		return nil, err
	}
	h.prepareScratch = sync.OnceValue(h.makeScratchPrivate)
	h.uevents = listenUevents()
	return h, nil
}

// Close stops listening for devices. Calls to Wait that are under way go on with their slow look at sysfs.
func (h *Host) Close() error { return h.uevents.close() }

// pathOf returns the published path of a volume's directory.
func (h *Host) pathOf(dir string) (string, error) {
	if dir == "" || len(dir) > 255 || dir[0] == '.' || strings.ContainsAny(dir, "/\x00") {
		return "", fmt.Errorf("%q cannot be the name of a published directory: it must be one path element, up to 255 bytes, that does not start with a dot", dir)
	}
	return filepath.Join(h.published, dir), nil
}

func (h *Host) clearScratch() error {
	left, err := mountsUnder(h.scratch)
	if err != nil {
		return err
	}
	// The last mounted is the first to go.
	for i := len(left) - 1; i >= 0; i-- {
		if left[i].Mountpoint == h.scratch {
			continue
		}
		if err := unix.Unmount(left[i].Mountpoint, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("%s, left by an earlier run, cannot be unmounted: %w", left[i].Mountpoint, err)
		}
	}
	names, err := os.ReadDir(h.scratch)
	if err != nil {
		return fmt.Errorf("the scratch directory cannot be read: %w", err)
	}
	for _, e := range names {
		if err := unix.Rmdir(filepath.Join(h.scratch, e.Name())); err != nil {
			return fmt.Errorf("the scratch directory %s must be empty: %s cannot be removed: %w", h.scratch, e.Name(), err)
		}
	}
	return nil
}

// makeScratchPrivate makes the scratch directory a mount whose own mounts are propagated to nobody.
func (h *Host) makeScratchPrivate() error {
	is, err := mountsUnder(h.scratch)
	if err != nil {
		return err
	}
	mounted := false
	for _, m := range is {
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

func canonical(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// within tells whether path is dir or lies under it.
func within(dir, path string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
