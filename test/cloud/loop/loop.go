// Package loop gives a simulated cloud real disks: a disk is a sparse image file in a directory, and to attach it is to make
// it a loop device of this machine.
//
// A loop device has no serial, and all instances of the simulation share one kernel. So each instance has a tree of its own
// that stands where package mount looks for sysfs, and shows the devices that are attached to this instance, with their
// serials as NVMe has them, or another bus, see ShowAs:
//
//	<tree>/block/loop3/dev            → /sys/block/loop3/dev
//	<tree>/block/loop3/size           → /sys/block/loop3/size
//	<tree>/block/loop3/device/serial    vol0123456789abcdef0
//	<tree>/block/loop3/device/subsystem → /sys/class/nvme
//
// A device is in a tree only while it shows that very disk: it is put there, whole and at once, when it has been set up,
// and taken from there before it is cleared. Each time the kernel then sends an event about the device, to wake those who
// look at the tree.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/blockvol/blockvol/test/cloud/image"
)

// Backend has the disks of one simulated cloud. Its methods may be called from any number of goroutines; calls that concern
// one disk wait for each other.
type Backend struct {
	*image.Disks[attachment]

	identity    func(disk string) Identity
	configuring sync.Mutex // from the choice of a free loop device until it is set up, see attach

	mu    sync.Mutex
	trees map[string]string // of instances
}

type attachment struct {
	instance, tree string
	device         string // the kernel's name: loop3
}

// New returns a backend that keeps its images in a directory, made if missing. Only Close detaches what is attached; where a
// process may be killed before, the directory needs the guard of namespace.Dir.
func New(dir string) (*Backend, error) {
	disks, err := image.NewDisks[attachment](dir)
	if err != nil {
		return nil, err
	}
	ebs := func(disk string) Identity { return NVMe(strings.Replace(disk, "-", "", 1)) }
	return &Backend{Disks: disks, identity: ebs, trees: map[string]string{}}, nil
}

// ShowAs tells how disks are shown from now on, instead of as those of EBS.
func (b *Backend) ShowAs(identity func(disk string) Identity) { b.identity = identity }

// Sysfs tells where an instance's tree is, for mount.Config.Sysfs. The tree is the backend's: what is in it is removed, and
// it is empty until a disk is attached. An instance without a tree can have no disk.
func (b *Backend) Sysfs(instance, dir string) error {
	block := filepath.Join(dir, "block")
	if err := errors.Join(os.RemoveAll(block), os.MkdirAll(block, 0o755)); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trees[instance] = dir
	return nil
}

// ResizeDisk makes a disk larger, also while it is attached.
func (b *Backend) ResizeDisk(name string, bytes int64) error {
	d, release, err := b.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	if err := image.Grow(b.Image(name), bytes); err != nil || d.Attachment == nil {
		return err
	}
	return announceDevice(d.Attachment.device)
}

// Attach makes the disk a device of the instance. When it returns, the device is in the instance's tree.
func (b *Backend) Attach(instance, name string) error {
	d, release, err := b.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	if d.Attachment != nil {
		return fmt.Errorf("disk %s is attached to %s already", name, d.Attachment.instance)
	}
	b.mu.Lock()
	tree := b.trees[instance]
	b.mu.Unlock()
	if tree == "" {
		return fmt.Errorf("instance %s shows no devices: Sysfs has not been called for it", instance)
	}
	device, err := b.setUp(b.Image(name))
	if err != nil {
		return err
	}
	a := &attachment{instance: instance, tree: tree, device: device}
	if err := a.show(b.identity(name)); err != nil {
		return errors.Join(err, clearDevice(device, b.Image(name), true, func(*os.File) error { return nil }))
	}
	d.Attachment = a
	return announceDevice(device) // to those who have looked before
}

// Detach takes the device from the instance. When it returns, the device is not in the instance's tree.
//
// Without force it fails with cloud.ErrDeviceBusy, and everything is as it was, while the kernel holds a file system on the
// device or a program has it open for itself alone. With force the device is taken from them as if it were pulled: it is
// empty from then on, what they read and write fails, and the disk can be attached elsewhere. The kernel keeps the empty
// device until its last user is gone. (Kernels that refuse to change a loop device under its holder may come; then this fails.)
func (b *Backend) Detach(instance, name string, force bool) error {
	d, release, err := b.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	if d.Attachment == nil || d.Attachment.instance != instance {
		return fmt.Errorf("disk %s is not attached to %s", name, instance)
	}
	return detach(d, b.Image(name), force)
}

func detach(d *image.Disk[attachment], image string, force bool) error {
	return clearDevice(d.Attachment.device, image, force, func(f *os.File) error {
		if err := d.Attachment.hide(); err != nil {
			return err
		}
		d.Attachment = nil
		return announce(f) // now, since while others have it open the kernel clears it later
	})
}

// Device returns the path of the device by which an attached disk is seen, "" while there is none.
func (b *Backend) Device(name string) string {
	d, release, err := b.Lock(name)
	if err != nil {
		return ""
	}
	defer release()
	if d.Attachment == nil {
		return ""
	}
	return devicePath(d.Attachment.device)
}

// Close detaches all disks by force and removes them, the snapshots, and the instances' trees.
func (b *Backend) Close() error {
	b.mu.Lock()
	trees := b.trees
	b.trees = map[string]string{} // nothing is attached any more
	b.mu.Unlock()

	errs := []error{b.Remove(func(name string, d *image.Disk[attachment]) error { return detach(d, b.Image(name), true) })}
	for _, tree := range trees {
		errs = append(errs, os.RemoveAll(filepath.Join(tree, "block")))
	}
	return errors.Join(errs...)
}

// Identity is how sysfs tells who a device is: the file below its own directory, what that holds, and what the link
// device/subsystem leads to, which is the bus of the device.
type Identity struct {
	File      string
	Content   []byte
	Subsystem string
}

// NVMe is the identity of an NVMe disk: up to 20 bytes, padded with blanks.
func NVMe(serial string) Identity {
	return Identity{"device/serial", fmt.Appendf(nil, "%-20s\n", serial), "class/nvme"}
}

// SCSI is the identity of a SCSI disk: page 0x80 of its vital product data (SPC-4, 7.8.15).
func SCSI(serial string) Identity {
	return Identity{"device/vpd_pg80", append([]byte{0, 0x80, byte(len(serial) >> 8), byte(len(serial))}, serial...), "bus/scsi"}
}

// Virtio is the identity of a virtio disk: up to 20 bytes (VIRTIO_BLK_ID_BYTES of the virtio specification).
func Virtio(serial string) Identity {
	return Identity{"serial", []byte(serial[:min(len(serial), 20)]), "bus/virtio"}
}
