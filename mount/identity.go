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
	"strings"

	"golang.org/x/sys/unix"
)

// bus is how the disks on a bus show their serials.
type bus struct {
	file  string              // below /sys/block/<name>
	parse func([]byte) string // returns the serial in the file's content, "" if there is none

	// limit is the number of bytes after which the kernel may truncate a serial; 0: it never does. hasFull tells whether a disk
	// that shows a truncated serial has this one; if it is nil, the beginning is all that can be compared.
	limit   int
	hasFull func(dir, serial string) bool
}

var buses = map[string]bus{
	"loop": {file: "loop/backing_file", parse: backingFile},
	"nvme": {file: "device/serial", parse: plainSerial},
	"scsi": {file: "device/vpd_pg80", parse: pageSerial, limit: 36, hasFull: func(dir, serial string) bool { // the size of the field in QEMU's hw/scsi/scsi-disk.c
		page, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg83"))
		return err == nil && hasDesignator(page, serial)
	}},
	"virtio": {file: "serial", parse: plainSerial, limit: 20}, // VIRTIO_BLK_ID_BYTES of the virtio specification
}

// matches tells whether the disk that shows this has the serial.
func (b bus) matches(dir, shown, serial string) bool {
	truncated := b.limit > 0 && len(shown) == b.limit && strings.HasPrefix(serial, shown)
	return shown == serial || truncated && (b.hasFull == nil || b.hasFull(dir, serial))
}

// read returns the serial that a device shows, "" if it shows none.
func (b bus) read(dir string) (string, error) {
	content, err := os.ReadFile(filepath.Join(dir, b.file))
	if err != nil {
		return "", ignoreGone(err)
	}
	return b.parse(content), nil
}

// busOf returns the kernel's name of the bus that a device is on, "" if there is none.
func busOf(dir string) (string, error) {
	link, err := os.Readlink(filepath.Join(dir, "device/subsystem"))
	if err == nil {
		if filepath.Base(link) == "nvme-subsystem" { // a multipath device
			return "nvme", nil
		}
		return filepath.Base(link), nil
	}
	if err := ignoreGone(err); err != nil {
		return "", err
	}
	if _, err := os.Lstat(filepath.Join(dir, "loop")); err != nil {
		return "", ignoreGone(err)
	}
	return "loop", nil
}

// ignoreGone returns nil for the error of a device that has disappeared or has no such file: devices come and go while sysfs is
// read, and a controller that is being removed answers with an error of its own. A device without an identity is never used.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, gone := range []error{unix.ENODEV, unix.ENXIO, unix.EIO, unix.EINVAL, unix.ENOTDIR} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

// errNoAnswer is the cause when reading the serials takes too long. sysfs answers at once, except for virtio, where it asks the
// disk itself.
var errNoAnswer = errors.New("a block device of this node does not answer when it is asked for its serial; see the kernel's log")

// namesOf returns the names of the devices that have the serial and are on one of this Host's buses.
func (h *Host) namesOf(serial string) ([]string, error) {
	if serial == "" {
		return nil, fmt.Errorf("%w: a device cannot be found without a serial", ErrNoDevice)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), h.identityTimeout, errNoAnswer)
	defer cancel()
	devices, err := h.identities.get(ctx, struct{}{})
	if err != nil {
		return nil, err
	}
	var names []string
	for busName, bus := range h.buses {
		matches := devices[identity{busName, serial}]
		if beginning := serial[:min(len(serial), bus.limit)]; beginning != serial {
			for _, name := range devices[identity{busName, beginning}] {
				if bus.matches(filepath.Join(h.sysfs, "block", name), beginning, serial) {
					matches = append(slices.Clip(matches), name)
				}
			}
		}
		for _, name := range matches {
			// A path of an NVMe multipath device is hidden and has no node; the device above it has the same serial.
			if hidden, _ := os.ReadFile(filepath.Join(h.sysfs, "block", name, "hidden")); len(hidden) == 0 || hidden[0] != '1' {
				names = append(names, name)
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
	devices := make(map[identity][]string, len(all))
	for _, e := range all {
		device := filepath.Join(dir, e.Name())
		busName, err := busOf(device)
		if bus, ours := h.buses[busName]; err == nil && ours {
			var serial string
			if serial, err = bus.read(device); serial != "" {
				id := identity{busName, serial}
				devices[id] = append(devices[id], e.Name())
			}
		}
		if err != nil {
			return nil, fmt.Errorf("the identity of block device %s cannot be read: %w", e.Name(), err)
		}
	}
	return devices, nil
}

// onOtherBuses names the devices that show the serial and are not on one of this Host's buses, for an error; "" if there are none.
func (h *Host) onOtherBuses(serial string) string {
	all, _ := os.ReadDir(filepath.Join(h.sysfs, "block"))
	var found []string
	for _, e := range all {
		dir := filepath.Join(h.sysfs, "block", e.Name())
		name, _ := busOf(dir)
		if _, ours := h.buses[name]; ours {
			continue
		}
		for _, bus := range buses {
			if shown, _ := bus.read(dir); bus.matches(dir, shown, serial) {
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

// verify checks that the device of that name still is the disk, according to sysfs.
func (h *Host) verify(disk Device) error {
	dir := filepath.Join(h.sysfs, "block", disk.Name)
	name, err := busOf(dir)
	if err != nil {
		return err
	}
	bus, ours := h.buses[name]
	if !ours {
		return fmt.Errorf("%w: %s is not on a bus where volumes appear; it is not used", ErrWrongDevice, disk.Name)
	}
	shown, err := bus.read(dir)
	if err != nil {
		return err
	}
	if !bus.matches(dir, shown, disk.Serial) {
		return fmt.Errorf("%w: %s does not have the serial %q any more; it is not used", ErrWrongDevice, disk.Name, disk.Serial)
	}
	major, minor, err := h.number(disk.Name)
	if err != nil {
		return err
	}
	if major != disk.Major || minor != disk.Minor {
		return fmt.Errorf("%w: %s is device %d:%d now and was %s; it is not used", ErrWrongDevice, disk.Name, major, minor, disk.number())
	}
	return nil
}

func plainSerial(b []byte) string { return strings.TrimSpace(strings.TrimRight(string(b), "\x00\n")) }

// pageSerial reads the unit serial number page of SCSI (SPC-4, 7.8.15): four bytes of header, of which the last two are the
// length of the serial that follows. It returns "" for anything else.
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

// hasDesignator tells whether the device identification page of SCSI (SPC-4, 7.8.6) has the serial as a vendor-specific
// designator in ASCII of the disk itself. A designator is the code set, the association and type, a reserved byte, the length
// of what follows, and that.
func hasDesignator(b []byte, serial string) bool {
	if len(b) < 4 || b[1] != 0x83 {
		return false
	}
	const ascii, logicalUnit, vendorSpecific = 2, 0, 0
	for b = b[4:]; len(b) >= 4 && int(b[3]) <= len(b)-4; b = b[4+int(b[3]):] {
		if b[0]&0xf == ascii && b[1]>>4&3 == logicalUnit && b[1]&0xf == vendorSpecific && plainSerial(b[4:4+int(b[3])]) == serial {
			return true
		}
	}
	return false
}

// backingFile returns the base name of a loop device's file. A file that was deleted is shown as "<path> (deleted)", which is the
// serial of no volume.
func backingFile(b []byte) string {
	path := string(bytes.TrimSuffix(b, []byte("\n")))
	return path[strings.LastIndexByte(path, '/')+1:]
}
