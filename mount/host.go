// Package mount is the Linux side of a node: it finds a disk by its identity, formats it if and only if it is blank, mounts its
// file system at a path once, and shows it to any number of consumers at paths of their own.
//
// # What it trusts
//
// A device is what sysfs says about it, never what a link under /dev is called. Whether a device is in use is what the kernel
// says, never what this process remembers. Only Format and e2fsck write to a device whose file system is not mounted, and Format
// does not rely on an earlier Probe.
//
// # Disk and top
//
// A volume has two devices. The disk has the volume's identity: it is found, proven blank, and detached. The top has the file
// system: it is checked, mounted and grown. They are the same device unless something is between them, as encryption is. A volume
// is in use if one of them is. Callers always pass the disk, and Host finds the top.
//
// # How a volume comes up
//
// Stage mounts the file system with fsopen and fsmount (complete since Linux 5.10), so that it is an open file without a path while
// it is verified, grown and given its layout: nobody can see it or copy it into another mount namespace, and a crash unmounts it.
// Then the part that containers see is attached under Config.Published. Kernels before 6.15 can clone a directory only from a mount
// that has a path: there the mount gets one under Config.Scratch, for this step alone.
//
// Bind attaches a clone of the staged mount at one more path (Linux 5.12). An engine that mounts the staged path into its containers
// by itself, as Docker does, needs no Bind.
//
// A file system is grown by its own ioctl, which is what resize2fs, xfs_growfs and btrfs use. ext4 needs CAP_SYS_RESOURCE for this,
// in addition to the CAP_SYS_ADMIN that the whole package needs.
//
// # Freezing
//
// Freeze holds a file system still for the instant in which the cloud copies the disk. A frozen file system stays so until somebody
// thaws it, though the process that froze it was killed, and though it was unmounted everywhere. Nobody else can see to that: of a
// managed plugin no child outlives the plugin, whatever its session, since the kernel kills the whole PID namespace (seen within 4 ms).
// So a caller notes durably what it freezes, and after a restart, which an engine needs a second or two for, calls Thaw.
//
// # A disk that was taken away
//
// A file system whose disk now is another node's must not write to it any more, nor serve what it remembers of it. Shutdown sees to that
// for ext4 and xfs; what it cannot do for btrfs, it says. Removed, Answers and Errors tell what the kernel knows of the disk. None of them
// knows whose the disk is: that, only the cloud does.
//
// The package runs blkid, wipefs, mkfs.<type> and e2fsck, of util-linux, e2fsprogs, xfsprogs and btrfs-progs. They are found in
// PATH and run without a shell, a terminal or an environment.
package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Config is where things are. Published and Buses are required.
type Config struct {
	// Published is the directory under which volumes are staged. It must exist. It must be a mount of shared propagation, made by
	// the caller, if containers are to see what is mounted there after they have started.
	Published string

	// Buses are those where volumes appear, by the kernel's names: nvme, scsi, virtio, loop. Devices on other buses are ignored.
	Buses []string

	// Scratch is a working directory for this Host alone, made if missing and emptied by New. Default /run/blockvol/staging. It
	// is used on kernels before 6.15 only.
	Scratch string

	// Sysfs is the sysfs in which devices are identified. Default /sys. Tests may give another directory with block/<name>/dev,
	// size and the files that have bus and identity (see Device). Whether a device is in use is always read from /sys itself.
	Sysfs string

	// Dev has the nodes of block devices, under their kernel names. Default /dev.
	Dev string

	// Proc is a proc file system with the processes of the whole machine. Default /proc.
	Proc string
}

// Host is the Linux side of this node. Its methods may be called from any number of goroutines: calls that work on the same device
// or directory wait for each other.
type Host struct {
	published string
	scratch   string
	sysfs     string
	dev       string
	proc      string
	buses     map[string]bus

	identities batcher[struct{}, map[identity][]string]
	mounts     batcher[query, *mounts]
	claims     claims
	uevents    *uevents

	life    context.Context // until Close
	end     context.CancelCauseFunc
	freezes sync.WaitGroup // of file systems

	reads singleflight.Group // of disks, by number

	pollInterval    time.Duration // how often Wait reads sysfs though no event came, in case one was lost
	identityTimeout time.Duration // how long the devices may take to show their serials

	// topOf returns the device that has the file system of the volume on a disk. It is the disk itself: nothing is between them
	// yet, except in tests.
	topOf func(disk Device) (top Device, err error)

	prepareScratch    func() error
	cloneAlwaysAtPath bool // for tests of what kernels before 6.15 need
}

// New makes a Host. It unmounts what a crash left under Scratch. Close releases it; mounts stay.
func New(cfg Config) (*Host, error) {
	h := &Host{
		scratch: cmp.Or(cfg.Scratch, "/run/blockvol/staging"),
		sysfs:   cmp.Or(cfg.Sysfs, "/sys"),
		dev:     cmp.Or(cfg.Dev, "/dev"),
		proc:    cmp.Or(cfg.Proc, "/proc"),

		pollInterval:    time.Second,
		identityTimeout: 10 * time.Second,

		buses: map[string]bus{},
	}
	h.life, h.end = context.WithCancelCause(context.Background())
	h.topOf = func(disk Device) (Device, error) { return disk, nil }
	h.identities.run, h.mounts.run = h.readIdentities, h.findMounts
	if cfg.Published == "" {
		return nil, errors.New("no directory was given for the volumes")
	}
	for _, name := range cfg.Buses {
		b, known := buses[name]
		if !known {
			return nil, fmt.Errorf("disks on bus %q cannot be identified", name)
		}
		h.buses[name] = b
	}
	if len(h.buses) == 0 {
		return nil, errors.New("no bus was given for the volumes")
	}
	// Mount tables have paths without links, which are compared with these.
	var err error
	if h.published, err = canonical(cfg.Published); err != nil {
		return nil, fmt.Errorf("the published directory cannot be used: %w", err)
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

// Close thaws what is frozen and stops listening for events. Calls to Wait that have not returned go on reading sysfs.
func (h *Host) Close() error {
	h.end(errClosed)
	return errors.Join(h.waitThawed(closeTimeout), h.uevents.close())
}

// pathOf returns the path at which a volume is staged.
func (h *Host) pathOf(dir string) (string, error) {
	if dir == "" || len(dir) > 255 || dir[0] == '.' || strings.ContainsAny(dir, "/\x00") {
		return "", fmt.Errorf("%q cannot be the name of a volume's directory: it must be one path element of up to 255 bytes that does not start with a dot", dir)
	}
	return filepath.Join(h.published, dir), nil
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
