package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Device is a block device of this node whose identity was read from sysfs when it was found. Its bus is what the link
// /sys/block/<name>/device/subsystem points to; a loop device has a directory /sys/block/<name>/loop instead. Its serial is
//
//   - nvme: /sys/block/<name>/device/serial, without the spaces that pad it;
//   - scsi: /sys/block/<name>/device/vpd_pg80, the unit serial number page, without its header and padding. QEMU truncates it
//     to 36 bytes. A longer serial is compared with the device identification page, vpd_pg83, which has it in full and from
//     which udev makes the names under /dev/disk/by-id;
//   - virtio: /sys/block/<name>/serial, which has at most 20 bytes: longer serials match by their first 20;
//   - loop: the base name of /sys/block/<name>/loop/backing_file.
//
// A device on a bus that is not one of Config.Buses cannot be found, whatever serial it shows.
type Device struct {
	Name         string // the kernel's: loop3
	Path         string // of its node: /dev/loop3
	Major, Minor uint32
	Size         int64  // bytes, when it was found
	Serial       string // the identity that was asked for
}

// Find returns the disk that has the serial. Errors: ErrNoDevice, also while the device has no size or no node yet;
// ErrAmbiguousDevice.
func (h *Host) Find(ctx context.Context, serial string) (Device, error) {
	if err := ctx.Err(); err != nil {
		return Device{}, context.Cause(ctx)
	}
	names, err := h.namesOf(serial)
	switch {
	case err != nil:
		return Device{}, err
	case len(names) == 0:
		return Device{}, fmt.Errorf("%w: no block device of this node has the serial %q%s; check that the disk is attached to this node", ErrNoDevice, serial, h.onOtherBuses(serial))
	case len(names) > 1:
		return Device{}, fmt.Errorf("%w: %s all have the serial %q, so none of them is used; detach the ones that are not the volume", ErrAmbiguousDevice, strings.Join(names, ", "), serial)
	}
	dev := Device{Name: names[0], Path: filepath.Join(h.dev, names[0]), Serial: serial}
	if dev.Major, dev.Minor, err = h.number(dev.Name); err != nil {
		return Device{}, err
	}
	if dev.Size, err = h.size(dev.Name); err != nil {
		return Device{}, err
	}
	if dev.Size == 0 {
		return Device{}, fmt.Errorf("%w: %s has the serial %q but no size yet", ErrNoDevice, dev.Name, serial)
	}
	var st unix.Stat_t
	if err := unix.Stat(dev.Path, &st); err != nil {
		return Device{}, fmt.Errorf("%w: %s has the serial %q but its node %s is missing (%w); make the host's whole /dev visible to blockvol", ErrNoDevice, dev.Name, serial, dev.Path, err)
	}
	return dev, dev.isNode(&st)
}

// Wait returns the disk that has the serial as soon as there is one. The kernel's events wake it, and it reads sysfs once a
// second in case an event is lost. Errors: ErrAmbiguousDevice at once; ErrNoDevice when ctx ends, with the last error of Find.
func (h *Host) Wait(ctx context.Context, serial string) (disk Device, err error) {
	missing := fmt.Errorf("%w: no device with the serial %q has appeared", ErrNoDevice, serial)
	waitErr := h.await(ctx, func() (bool, error) {
		disk, err = h.Find(ctx, serial)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, ErrAmbiguousDevice):
			return false, err
		case errors.Is(err, ErrNoDevice):
			missing = err
		case ctx.Err() == nil:
			missing = fmt.Errorf("%w: %w", ErrNoDevice, err)
		}
		return false, nil
	})
	if waitErr != nil && !errors.Is(waitErr, ErrAmbiguousDevice) {
		return Device{}, fmt.Errorf("%w: %w", missing, waitErr)
	}
	return disk, waitErr
}

// WaitGone returns when no device of this node has the serial, or with an error when ctx ends.
func (h *Host) WaitGone(ctx context.Context, serial string) error {
	var names []string
	err := h.await(ctx, func() (gone bool, err error) {
		found, err := h.namesOf(serial)
		if err == nil {
			names = found
		}
		return err == nil && len(names) == 0, err
	})
	if err != nil && len(names) > 0 {
		return fmt.Errorf("%w: device %s with the serial %q is still attached: %w", ErrBusy, strings.Join(names, ", "), serial, err)
	}
	return err
}

// await calls done until it returns true, whenever block devices change and once a second.
func (h *Host) await(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(h.pollInterval)
	defer tick.Stop()
	for {
		changed := h.uevents.next() // before done, so that no event is missed
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// devno is the number of a block device.
type devno struct{ major, minor uint32 }

func (n devno) String() string { return fmt.Sprintf("%d:%d", n.major, n.minor) }

func (d Device) number() devno { return devno{d.Major, d.Minor} }

func (h *Host) number(name string) (major, minor uint32, err error) {
	b, err := os.ReadFile(filepath.Join(h.sysfs, "block", name, "dev"))
	if err != nil {
		return 0, 0, fmt.Errorf("%w: the number of block device %s cannot be read: %w", ErrNoDevice, name, err)
	}
	n, err := parseDevno(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, 0, fmt.Errorf("the number of block device %s cannot be read: %w", name, err)
	}
	return n.major, n.minor, nil
}

// parseDevno reads the kernel's "major:minor".
func parseDevno(s string) (devno, error) {
	maj, mnr, found := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(maj, 10, 32)
	minor, err2 := strconv.ParseUint(mnr, 10, 32)
	if !found || err1 != nil || err2 != nil {
		return devno{}, fmt.Errorf("%q is not a device number", s)
	}
	return devno{uint32(major), uint32(minor)}, nil
}

func (h *Host) size(name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(h.sysfs, "block", name, "size"))
	if err != nil {
		return 0, fmt.Errorf("%w: the size of block device %s cannot be read: %w", ErrNoDevice, name, err)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || sectors < 0 || sectors > 1<<54 {
		return 0, fmt.Errorf("the size of block device %s cannot be read: %q is not a number of sectors", name, b)
	}
	return sectors * 512, nil // the kernel's unit here is 512 bytes, whatever the sector size
}

// isNode checks that a stat of the device's path is of the device that sysfs identified.
func (d Device) isNode(st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(st.Rdev) != d.Major || unix.Minor(st.Rdev) != d.Minor {
		return fmt.Errorf("%w: %s is not block device %s, which has the serial %q; make the host's own /dev visible to blockvol", ErrWrongDevice, d.Path, d.number(), d.Serial)
	}
	return nil
}

// open opens a disk and verifies its identity again. While the file is open, the kernel does not give the name and number of
// the disk to another one.
func (h *Host) open(disk Device, flags int) (*os.File, error) {
	f, err := openNode(disk, flags)
	if err != nil {
		return nil, err
	}
	if err := h.verify(disk); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openTop opens the device that has the file system of a volume whose disk is open.
func (h *Host) openTop(disk Device) (top Device, f *os.File, err error) {
	if top, err = h.topOf(disk); err == nil {
		f, err = openNode(top, os.O_RDONLY)
	}
	return top, f, err
}

// openNode opens a device by its node, which must have the device's number.
func openNode(dev Device, flags int) (*os.File, error) {
	f, err := os.OpenFile(dev.Path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%w: a mount, another program or another block device holds device %s", ErrBusy, dev.Path)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: device %s with the serial %q has disappeared: %w", ErrNoDevice, dev.Path, dev.Serial, err)
	case err != nil:
		return nil, fmt.Errorf("%w: device %s cannot be opened: %w", ErrUnreadable, dev.Path, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err != nil {
		err = fmt.Errorf("%w: device %s: %w", ErrUnreadable, dev.Path, err)
	} else {
		err = dev.isNode(&st)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sizeOf returns the size of an open block device, in bytes, from the kernel itself.
func sizeOf(f *os.File) (int64, error) {
	size, err := ioctlUint64(f, unix.BLKGETSIZE64)
	if err != nil {
		return 0, fmt.Errorf("%w: the size of %s cannot be read: %w", ErrUnreadable, f.Name(), err)
	}
	return int64(size), nil
}
