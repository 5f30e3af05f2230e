package qemu

import (
	"fmt"
	"strings"
)

// Bus is the bus of a cloud's disks.
type Bus int

// The buses. SCSI disks are removed at once and the guest is told. On the others the guest releases the disk.
const (
	NVMe   Bus = iota // a controller for each disk, which cannot be resized
	SCSI              // all disks on one controller, which every machine has
	Virtio            // a device for each disk
)

// Model describes how the disks of a cloud appear in its machines.
type Model struct {
	Bus             Bus
	Serial          func(disk string) string // serial of a disk, by its name in the cloud
	Vendor, Product string                   // of SCSI disks; "" is QEMU's default
}

// EBS is the model of AWS.
var EBS = Model{Bus: NVMe, Serial: Serial}

// Serial returns the serial of an EBS volume: its ID without the dash.
func Serial(disk string) string { return strings.Replace(disk, "-", "", 1) }

// maxSerial is QEMU's maximum length of a serial in bytes; it truncates longer ones silently. The guest sees the first 20 bytes
// for virtio, as in the specification and in clouds. For SCSI it sees the first 36 in the page of serials, and all in the page
// of names.
var maxSerial = map[Bus]int{NVMe: 20, SCSI: 247}

// serial returns the serial of a disk.
func (m Model) serial(disk string) (string, error) {
	serial := m.Serial(disk)
	if most := maxSerial[m.Bus]; most > 0 && len(serial) > most {
		return "", fmt.Errorf("serial %s is longer than %d bytes", serial, most)
	}
	return serial, nil
}

// arguments returns the arguments of QEMU's device_add.
func (d *device) arguments() map[string]any {
	args := map[string]any{"id": d.name, "serial": d.serial, "drive": d.node, "bus": portName(d.port), "addr": "0"}
	switch d.model.Bus {
	case NVMe:
		args["driver"] = "nvme"
	case Virtio:
		args["driver"] = "virtio-blk-pci"
	case SCSI:
		delete(args, "addr")
		args["driver"], args["bus"] = "scsi-hd", scsiController+".0"
		args["device_id"] = d.serial
		// Never reuse a number: a guest that was frozen could take the next disk for the one that was removed.
		args["lun"] = d.number
		if d.model.Vendor != "" {
			args["vendor"] = d.model.Vendor
		}
		if d.model.Product != "" {
			args["product"] = d.model.Product
		}
	}
	return args
}
