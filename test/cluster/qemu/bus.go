package qemu

import (
	"fmt"
	"strings"
)

// A Bus is what the disks of a cloud are plugged into.
type Bus int

// The buses. A SCSI disk goes at once, whatever the guest is doing, and the guest is told; of the others the guest lets go.
const (
	NVMe   Bus = iota // a controller for each disk, which cannot grow while it is there
	SCSI              // all disks at one controller, which every machine has
	Virtio            // a device for each disk
)

// A Model is how the disks of a cloud look in its machines.
type Model struct {
	Bus             Bus
	Serial          func(disk string) string // what a disk bears, by its name in the cloud
	Vendor, Product string                   // of SCSI disks; "" is QEMU's own
}

// EBS is the model of AWS.
var EBS = Model{Bus: NVMe, Serial: Serial}

// Serial returns what a disk of EBS bears: its id without the dash.
func Serial(disk string) string { return strings.Replace(disk, "-", "", 1) }

// maxSerial is what QEMU has room for in a serial, in bytes: it says nothing when it cuts one off. Of a virtio disk's the
// guest is shown the first 20, as the specification has it and clouds do it; of a SCSI disk's the first 36 in the page of
// serials, and all in the page of names.
var maxSerial = map[Bus]int{NVMe: 20, SCSI: 247}

// serial returns what a disk is to bear.
func (m Model) serial(disk string) (string, error) {
	serial := m.Serial(disk)
	if most := maxSerial[m.Bus]; most > 0 && len(serial) > most {
		return "", fmt.Errorf("%s does not fit into %d bytes", serial, most)
	}
	return serial, nil
}

// arguments are those of QEMU's device_add.
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
		// No number comes twice: a guest that was frozen could take the next disk for the one that was pulled.
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
