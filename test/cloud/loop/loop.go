// Package loop provides the disks of a simulated cloud as loop devices of this machine, backed by sparse files.
//
// A loop device has no serial, and all simulated instances share one kernel. So each instance has a tree of its own in place of
// sysfs for package mount. It has the instance's devices with their serials, as on NVMe or another bus, see ShowAs:
//
//	<tree>/block/loop3/dev            → /sys/block/loop3/dev
//	<tree>/block/loop3/size           → /sys/block/loop3/size
//	<tree>/block/loop3/device/serial    vol0123456789abcdef0
//	<tree>/block/loop3/device/subsystem → /sys/class/nvme
//
// A device is added to a tree in one step after it has been set up, and removed before it is cleared. After each change the
// kernel sends an event about the device, which wakes programs that wait for it.
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

// Backend stores the disks of a simulated cloud. Its methods are safe for concurrent use; calls for one disk are serialised.
type Backend struct {
	*image.Disks[attachment]

	identity    func(disk string) Identity
	configuring sync.Mutex // held from the choice of a free loop device until it is set up

	mu    sync.Mutex
	trees map[string]string // by instance
}

type attachment struct {
	instance, tree string
	device         string // the kernel's name, such as loop3
}

// New returns a backend that keeps its images in dir, which it creates if missing. Only Close detaches the disks; if the
// process may be killed, the directory needs the guard of namespace.Dir.
func New(dir string) (*Backend, error) {
	disks, err := image.NewDisks[attachment](dir)
	if err != nil {
		return nil, err
	}
	ebs := func(disk string) Identity { return NVMe(strings.Replace(disk, "-", "", 1)) }
	return &Backend{Disks: disks, identity: ebs, trees: map[string]string{}}, nil
}

// ShowAs sets how disks identify themselves from now on. The default is EBS.
func (b *Backend) ShowAs(identity func(disk string) Identity) { b.identity = identity }

// Sysfs sets the directory of an instance's tree, for mount.Config.Sysfs. It removes the tree's contents. An instance without a
// tree cannot have disks.
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

// ResizeDisk enlarges a disk, attached or not.
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
		return fmt.Errorf("disk %s is already attached to %s", name, d.Attachment.instance)
	}
	b.mu.Lock()
	tree := b.trees[instance]
	b.mu.Unlock()
	if tree == "" {
		return fmt.Errorf("instance %s has no sysfs tree: call Sysfs first", instance)
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
	return announceDevice(device) // wakes programs that have looked before
}

// Detach removes the device from the instance and its tree.
//
// Without force it returns cloud.ErrDeviceBusy, and changes nothing, while the device is mounted or opened exclusively. With
// force the device acts as if it were pulled: it is empty from then on, reads and writes fail, and the disk can be attached
// elsewhere. The kernel keeps the empty device until its last user closes it. (A future kernel may refuse to change a loop
// device in use; then this fails.)
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
		return announce(f) // now, because the kernel clears it later if it is still open
	})
}

// Device returns the path of an attached disk's device, or "".
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

// Identity is how sysfs identifies a device: a file below the device's directory, its content, and the target of the link
// device/subsystem, which is the bus.
type Identity struct {
	File      string
	Content   []byte
	Subsystem string
}

// NVMe returns the identity of an NVMe disk: up to 20 bytes, padded with spaces.
func NVMe(serial string) Identity {
	return Identity{"device/serial", fmt.Appendf(nil, "%-20s\n", serial), "class/nvme"}
}

// SCSI returns the identity of a SCSI disk: page 0x80 of its vital product data (SPC-4, 7.8.15).
func SCSI(serial string) Identity {
	return Identity{"device/vpd_pg80", append([]byte{0, 0x80, byte(len(serial) >> 8), byte(len(serial))}, serial...), "bus/scsi"}
}

// Virtio returns the identity of a virtio disk: up to 20 bytes (VIRTIO_BLK_ID_BYTES of the virtio specification).
func Virtio(serial string) Identity {
	return Identity{"serial", []byte(serial[:min(len(serial), 20)]), "bus/virtio"}
}
