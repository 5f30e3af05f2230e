package mount

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Device is a block device of this node whose identity was read from sysfs when it was found. Its bus is what the link
// /sys/block/<name>/device/subsystem leads to; a loop device has a directory /sys/block/<name>/loop instead. Its serial is
//
//   - nvme: /sys/block/<name>/device/serial, without the blanks that pad it;
//   - scsi: /sys/block/<name>/device/vpd_pg80, the unit serial number page, without its header and padding. QEMU cuts it
//     off after 36 bytes; a longer serial is one that begins so and stands whole in the device identification page, vpd_pg83,
//     of which udev makes the names under /dev/disk/by-id;
//   - virtio: /sys/block/<name>/serial, which holds no more than 20 bytes: longer serials match by their first 20;
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

// Find returns the device that bears the serial. Errors: ErrNoDevice, also while the device is still without a size or
// a node; ErrAmbiguousDevice.
func (h *Host) Find(ctx context.Context, serial string) (Device, error) {
	if err := ctx.Err(); err != nil {
		return Device{}, context.Cause(ctx)
	}
	names, err := h.bearers(serial)
	switch {
	case err != nil:
		return Device{}, err
	case len(names) == 0:
		return Device{}, fmt.Errorf("%w: no block device of this node has the serial %q%s; check that the disk is attached to this node", ErrNoDevice, serial, h.elsewhere(serial))
	case len(names) > 1:
		return Device{}, fmt.Errorf("%w: %s all bear the serial %q, so none is touched; detach the ones that are not the volume", ErrAmbiguousDevice, strings.Join(names, ", "), serial)
	}
	dev := Device{Name: names[0], Path: filepath.Join(h.dev, names[0]), Serial: serial}
	if dev.Major, dev.Minor, err = h.number(dev.Name); err != nil {
		return Device{}, err
	}
	if dev.Size, err = h.size(dev.Name); err != nil {
		return Device{}, err
	}
	if dev.Size == 0 {
		return Device{}, fmt.Errorf("%w: %s bears the serial %q but has no size yet", ErrNoDevice, dev.Name, serial)
	}
	var st unix.Stat_t
	if err := unix.Stat(dev.Path, &st); err != nil {
		return Device{}, fmt.Errorf("%w: %s bears the serial %q but its node %s is missing (%w); the whole of the host's /dev must be seen here", ErrNoDevice, dev.Name, serial, dev.Path, err)
	}
	return dev, dev.isNode(&st)
}

// Wait returns the device that bears the serial as soon as there is one. It is woken by the kernel's events, and looks at
// sysfs each second besides. Errors: ErrAmbiguousDevice at once; ErrNoDevice when ctx ends, with what Find said last.
func (h *Host) Wait(ctx context.Context, serial string) (dev Device, err error) {
	missing := fmt.Errorf("%w: no device with the serial %q has arrived", ErrNoDevice, serial)
	waitErr := h.await(ctx, func() (bool, error) {
		dev, err = h.Find(ctx, serial)
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
	return dev, waitErr
}

// WaitGone returns when no device of this node bears the serial, or with an error when ctx ends.
func (h *Host) WaitGone(ctx context.Context, serial string) error {
	var names []string
	err := h.await(ctx, func() (gone bool, err error) {
		found, err := h.bearers(serial)
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

// await calls done until it is, whenever block devices change and each second.
func (h *Host) await(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(h.lookEvery)
	defer tick.Stop()
	for {
		changed := h.uevents.next() // before the look, so that no event falls between
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

// errNoAnswer is of a look that takes too long: sysfs answers at once, but for virtio, where it asks the disk itself.
var errNoAnswer = errors.New("a block device of this node does not answer when it is asked for its serial; see the kernel's log")

// bearers returns the names of the devices that have the serial and are on a bus where volumes appear.
func (h *Host) bearers(serial string) ([]string, error) {
	if serial == "" {
		return nil, fmt.Errorf("%w: a device cannot be found without a serial", ErrNoDevice)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), h.lookTimeout, errNoAnswer)
	defer cancel()
	shown, err := h.identities.get(ctx, struct{}{})
	if err != nil {
		return nil, err
	}
	var names []string
	for name, bus := range h.buses {
		devices := shown[identity{name, serial}]
		if beginning := serial[:min(len(serial), bus.most)]; beginning != serial {
			for _, device := range shown[identity{name, beginning}] {
				if bus.has(filepath.Join(h.sysfs, "block", device), beginning, serial) {
					devices = append(slices.Clip(devices), device)
				}
			}
		}
		for _, device := range devices {
			// A path of an NVMe multipath device is hidden and has no node; the device above it has the same serial.
			if hidden, _ := os.ReadFile(filepath.Join(h.sysfs, "block", device, "hidden")); len(hidden) == 0 || hidden[0] != '1' {
				names = append(names, device)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// identity is what a device shows of itself.
type identity struct{ bus, serial string }

// readIdentities returns the names of all devices on this Host's buses, by what they show.
func (h *Host) readIdentities(map[struct{}]bool) (map[identity][]string, error) {
	dir := filepath.Join(h.sysfs, "block")
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the block devices of this node cannot be listed: %w", err)
	}
	shown := make(map[identity][]string, len(all))
	for _, e := range all {
		device := filepath.Join(dir, e.Name())
		name, err := busOf(device)
		if bus, ours := h.buses[name]; err == nil && ours {
			var serial string
			if serial, err = bus.shownBy(device); serial != "" {
				id := identity{name, serial}
				shown[id] = append(shown[id], e.Name())
			}
		}
		if err != nil {
			return nil, fmt.Errorf("the identity of block device %s cannot be read: %w", e.Name(), err)
		}
	}
	return shown, nil
}

// elsewhere tells of the devices that show the serial and are not on one of this Host's buses, or "".
func (h *Host) elsewhere(serial string) string {
	all, _ := os.ReadDir(filepath.Join(h.sysfs, "block"))
	var found []string
	for _, e := range all {
		dir := filepath.Join(h.sysfs, "block", e.Name())
		name, _ := busOf(dir)
		if _, ours := h.buses[name]; ours {
			continue
		}
		for _, bus := range buses {
			if shown, _ := bus.shownBy(dir); bus.has(dir, shown, serial) {
				found = append(found, fmt.Sprintf("%s (%s)", e.Name(), cmp.Or(name, "unknown")))
				break
			}
		}
	}
	if len(found) == 0 {
		return ""
	}
	return fmt.Sprintf(" on a bus where volumes appear (%s), though %s shows it on another", strings.Join(slices.Sorted(maps.Keys(h.buses)), ", "), strings.Join(found, ", "))
}

// bus is how disks on it tell who they are.
type bus struct {
	file   string                        // below /sys/block/<name>
	serial func([]byte) string           // in what the file holds
	most   int                           // bytes after which a serial may be cut off; 0: it never is
	whole  func(dir, serial string) bool // whether the disk has the serial, of which the file has only the beginning; nil: nothing tells
}

var buses = map[string]bus{
	"loop": {file: "loop/backing_file", serial: backingFile},
	"nvme": {file: "device/serial", serial: plainSerial},
	"scsi": {file: "device/vpd_pg80", serial: pageSerial, most: 36, whole: func(dir, serial string) bool { // what QEMU's hw/scsi/scsi-disk.c has room for
		page, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg83"))
		return err == nil && designates(page, serial)
	}},
	"virtio": {file: "serial", serial: plainSerial, most: 20}, // VIRTIO_BLK_ID_BYTES of the virtio specification
}

// has tells whether the disk that shows that has the serial.
func (b bus) has(dir, shown, serial string) bool {
	cut := b.most > 0 && len(shown) == b.most && strings.HasPrefix(serial, shown)
	return shown == serial || cut && (b.whole == nil || b.whole(dir, serial))
}

// shownBy returns what a device shows of its serial, "" if nothing.
func (b bus) shownBy(dir string) (string, error) {
	content, err := os.ReadFile(filepath.Join(dir, b.file))
	if err != nil {
		return "", unlessGone(err)
	}
	return b.serial(content), nil
}

// busOf returns the kernel's name of the bus that a device is on, "" if there is none.
func busOf(dir string) (string, error) {
	link, err := os.Readlink(filepath.Join(dir, "device/subsystem"))
	if err == nil {
		if filepath.Base(link) == "nvme-subsystem" { // which a multipath device is of
			return "nvme", nil
		}
		return filepath.Base(link), nil
	}
	if err := unlessGone(err); err != nil {
		return "", err
	}
	if _, err := os.Lstat(filepath.Join(dir, "loop")); err != nil {
		return "", unlessGone(err)
	}
	return "loop", nil
}

// unlessGone is nil for the error of a device that has gone or has no such file. Devices come and go while we look, and a
// controller that is going away answers with an error of its own. One that cannot be identified is never used.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || isDeviceGone(err) {
		return nil
	}
	return err
}

func isDeviceGone(err error) bool {
	for _, gone := range []error{unix.ENODEV, unix.ENXIO, unix.EIO, unix.EINVAL, unix.ENOTDIR} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

func plainSerial(b []byte) string { return strings.TrimSpace(strings.TrimRight(string(b), "\x00\n")) }

// pageSerial reads the unit serial number page of SCSI (SPC-4, 7.8.15): four bytes of header, of which the last two are
// the length of the serial that follows. It is "" for anything else.
func pageSerial(b []byte) string {
	if len(b) < 4 || b[1] != 0x80 {
		return ""
	}
	n := int(b[2])<<8 | int(b[3])
	if n > len(b)-4 {
		return ""
	}
	return plainSerial(b[4 : 4+n])
}

// designates tells whether the device identification page of SCSI (SPC-4, 7.8.6) names the disk itself so, in a descriptor of
// the vendor's own kind in ASCII. A descriptor is the code set, the association and kind, a reserved byte, the length of what
// follows, and that.
func designates(b []byte, serial string) bool {
	if len(b) < 4 || b[1] != 0x83 {
		return false
	}
	const ascii, ofTheDisk, vendorsOwn = 2, 0, 0
	for b = b[4:]; len(b) >= 4 && int(b[3]) <= len(b)-4; b = b[4+int(b[3]):] {
		if b[0]&0xf == ascii && b[1]>>4&3 == ofTheDisk && b[1]&0xf == vendorsOwn && plainSerial(b[4:4+int(b[3])]) == serial {
			return true
		}
	}
	return false
}

// backingFile returns the base name of a loop device's file. A file that was deleted shows as "<path> (deleted)" and so
// bears no volume's name any more.
func backingFile(b []byte) string {
	path := string(bytes.TrimSuffix(b, []byte("\n")))
	return path[strings.LastIndexByte(path, '/')+1:]
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
		return devno{}, fmt.Errorf("%q is no device number", s)
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
		return 0, fmt.Errorf("the size of block device %s cannot be read: %q is no number of sectors", name, b)
	}
	return sectors * 512, nil // the kernel counts in 512 bytes here, whatever the sector size
}

// isNode checks that a stat of the device's path is of the device that sysfs identified.
func (d Device) isNode(st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(st.Rdev) != d.Major || unix.Minor(st.Rdev) != d.Minor {
		return fmt.Errorf("%w: %s is not block device %s, which has the serial %q; the host's own /dev must be visible here", ErrWrongDevice, d.Path, d.number(), d.Serial)
	}
	return nil
}

// open opens a disk with further flags and verifies its identity anew. While the file is open the kernel does not give the
// disk's name and number to another one.
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
		return nil, fmt.Errorf("%w: device %s is held by a mount, another program, or a device made of it", ErrBusy, dev.Path)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: device %s with the serial %q has gone: %w", ErrNoDevice, dev.Path, dev.Serial, err)
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

// letGo closes an exclusive open, and returns when the device is free. A program that another goroutine is just starting has
// a copy of every open file until its exec is done, and keeps the device a moment longer: mkfs would find it busy.
func letGo(exclusive *os.File) {
	exclusive.Close() // nothing was written that an error could be about
	for wait := 50 * time.Microsecond; wait < time.Second && errors.Is(tryExclusive(exclusive.Name()), unix.EBUSY); wait *= 2 {
		time.Sleep(wait)
	}
}

// tryExclusive opens the device exclusively and closes it again. Go starts no program meanwhile, so that none has a copy of
// this open.
func tryExclusive(path string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// verify checks that the device of that name still is the disk, as sysfs has it.
func (h *Host) verify(dev Device) error {
	dir := filepath.Join(h.sysfs, "block", dev.Name)
	name, err := busOf(dir)
	if err != nil {
		return err
	}
	bus, ours := h.buses[name]
	if !ours {
		return fmt.Errorf("%w: %s is not on a bus where volumes appear; it is not touched", ErrWrongDevice, dev.Name)
	}
	shown, err := bus.shownBy(dir)
	if err != nil {
		return err
	}
	if !bus.has(dir, shown, dev.Serial) {
		return fmt.Errorf("%w: %s does not have the serial %q any more; it is not touched", ErrWrongDevice, dev.Name, dev.Serial)
	}
	major, minor, err := h.number(dev.Name)
	if err != nil {
		return err
	}
	if major != dev.Major || minor != dev.Minor {
		return fmt.Errorf("%w: %s is device %d:%d now and was %d:%d; it is not touched", ErrWrongDevice, dev.Name, major, minor, dev.Major, dev.Minor)
	}
	return nil
}

// sizeOf returns the size of an open block device, in bytes, from the kernel itself.
func sizeOf(f *os.File) (int64, error) {
	size, err := ioctlUint64(f, unix.BLKGETSIZE64)
	if err != nil {
		return 0, fmt.Errorf("%w: the size of %s cannot be read: %w", ErrUnreadable, f.Name(), err)
	}
	return int64(size), nil
}
