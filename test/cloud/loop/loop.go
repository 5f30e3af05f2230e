// Package loop gives a simulated cloud real disks: a disk is a sparse image file in a directory, and to attach it is to make
// it a loop device of this machine.
//
// A loop device has no serial, and all instances of the simulation share one kernel. So each instance has a tree of its own
// that stands where package mount looks for sysfs, and shows the devices that are attached to this instance, with their
// serials as NVMe has them:
//
//	<tree>/block/loop3/dev            → /sys/block/loop3/dev
//	<tree>/block/loop3/size           → /sys/block/loop3/size
//	<tree>/block/loop3/device/serial    vol0123456789abcdef0
//
// A device is in a tree only while it shows that very disk: it is put there, whole and at once, when it has been set up,
// and taken from there before it is cleared. Each time the kernel then sends an event about the device, to wake those who
// look at the tree.
//
// What a snapshot or a new disk made of one holds is a copy made at no single moment. A writer that is to be found as after a
// power loss must be still meanwhile, unless the directory is on a file system that shares blocks of files (xfs, btrfs).
package loop

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/blockvol/blockvol/test/cloud/image"
)

// Backend has the disks of one simulated cloud. Its methods may be called from any number of goroutines; calls that concern
// one disk wait for each other.
type Backend struct {
	dir string

	configuring sync.Mutex // from the choice of a free loop device until it is set up, see attach

	mu    sync.Mutex
	trees map[string]string // of instances
	disks map[string]*disk
}

type disk struct {
	mu         sync.Mutex
	attachment *attachment // nil while there is none
	deleted    bool
}

type attachment struct {
	instance, tree string
	device         string // the kernel's name: loop3
}

// New returns a backend that keeps its images in a directory, made if missing. Only Close detaches what is attached; where a
// process may be killed before, the directory wants a guard, see space.Dir.
func New(dir string) (*Backend, error) {
	b := &Backend{dir: dir, trees: map[string]string{}, disks: map[string]*disk{}}
	for _, sub := range []string{b.image(""), b.copy("")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *Backend) image(disk string) string    { return filepath.Join(b.dir, "disks", disk) }
func (b *Backend) copy(snapshot string) string { return filepath.Join(b.dir, "snapshots", snapshot) }

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

// CreateDisk makes a disk of so many bytes, blank or with what a snapshot holds.
func (b *Backend) CreateDisk(name string, bytes int64, snapshot string) error {
	d := &disk{}
	d.mu.Lock() // until it is whole
	defer d.mu.Unlock()
	b.mu.Lock()
	if b.disks[name] != nil {
		b.mu.Unlock()
		return fmt.Errorf("disk %s exists", name)
	}
	b.disks[name] = d
	b.mu.Unlock()

	from := ""
	if snapshot != "" {
		from = b.copy(snapshot)
	}
	if err := image.Make(b.image(name), bytes, from); err != nil {
		b.forget(name, d)
		return err
	}
	return nil
}

// DeleteDisk deletes a disk that is attached nowhere.
func (b *Backend) DeleteDisk(name string) error {
	d, release, err := b.lock(name)
	if err != nil {
		return err
	}
	defer release()
	if d.attachment != nil {
		return fmt.Errorf("disk %s is attached to %s", name, d.attachment.instance)
	}
	if err := os.Remove(b.image(name)); err != nil {
		return err
	}
	b.forget(name, d)
	return nil
}

func (b *Backend) forget(name string, d *disk) {
	d.deleted = true
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.disks, name)
}

// ResizeDisk makes a disk larger, also while it is attached.
func (b *Backend) ResizeDisk(name string, bytes int64) error {
	d, release, err := b.lock(name)
	if err != nil {
		return err
	}
	defer release()
	if err := image.Grow(b.image(name), bytes); err != nil || d.attachment == nil {
		return err
	}
	return announceDevice(d.attachment.device)
}

// CopyDisk makes a snapshot of a disk, also while it is attached.
func (b *Backend) CopyDisk(name, snapshot string) error {
	_, release, err := b.lock(name)
	if err != nil {
		return err
	}
	defer release()
	return image.Copy(b.image(name), b.copy(snapshot))
}

// DeleteSnapshot deletes a snapshot. Disks made of it do not need it.
func (b *Backend) DeleteSnapshot(snapshot string) error { return os.Remove(b.copy(snapshot)) }

// Attach makes the disk a device of the instance. When it returns, the device is in the instance's tree.
func (b *Backend) Attach(instance, name string) error {
	d, release, err := b.lock(name)
	if err != nil {
		return err
	}
	defer release()
	if d.attachment != nil {
		return fmt.Errorf("disk %s is attached to %s already", name, d.attachment.instance)
	}
	b.mu.Lock()
	tree := b.trees[instance]
	b.mu.Unlock()
	if tree == "" {
		return fmt.Errorf("instance %s shows no devices: Sysfs has not been called for it", instance)
	}
	device, err := b.setUp(b.image(name))
	if err != nil {
		return err
	}
	a := &attachment{instance: instance, tree: tree, device: device}
	if err := a.show(serial(name)); err != nil {
		return errors.Join(err, clearDevice(device, b.image(name), true, func(*os.File) error { return nil }))
	}
	d.attachment = a
	return announceDevice(device) // to those who have looked before
}

// Detach takes the device from the instance. When it returns, the device is not in the instance's tree.
//
// Without force it fails with cloud.ErrDeviceBusy, and everything is as it was, while the kernel holds a file system on the
// device or a program has it open for itself alone. With force the device is taken from them as if it were pulled: it is
// empty from then on, what they read and write fails, and the disk can be attached elsewhere. The kernel keeps the empty
// device until its last user is gone. (Kernels that refuse to change a loop device under its holder may come; then this fails.)
func (b *Backend) Detach(instance, name string, force bool) error {
	d, release, err := b.lock(name)
	if err != nil {
		return err
	}
	defer release()
	if d.attachment == nil || d.attachment.instance != instance {
		return fmt.Errorf("disk %s is not attached to %s", name, instance)
	}
	return d.detach(b.image(name), force)
}

func (d *disk) detach(image string, force bool) error {
	return clearDevice(d.attachment.device, image, force, func(f *os.File) error {
		if err := d.attachment.hide(); err != nil {
			return err
		}
		d.attachment = nil
		return announce(f) // now, since while others have it open the kernel clears it later
	})
}

// Device returns the path of the device by which an attached disk is seen, "" while there is none.
func (b *Backend) Device(name string) string {
	d, release, err := b.lock(name)
	if err != nil {
		return ""
	}
	defer release()
	if d.attachment == nil {
		return ""
	}
	return devicePath(d.attachment.device)
}

// Close detaches all disks by force and removes them, the snapshots, and the instances' trees.
func (b *Backend) Close() error {
	b.mu.Lock()
	names := slices.Collect(maps.Keys(b.disks))
	trees := b.trees
	b.trees = map[string]string{} // nothing is attached any more
	b.mu.Unlock()

	var errs []error
	for _, name := range names {
		if d, release, err := b.lock(name); err == nil {
			if d.attachment != nil {
				errs = append(errs, d.detach(b.image(name), true))
			}
			release()
		}
	}
	for _, dir := range []string{b.image(""), b.copy("")} {
		errs = append(errs, os.RemoveAll(dir))
	}
	for _, tree := range trees {
		errs = append(errs, os.RemoveAll(filepath.Join(tree, "block")))
	}
	return errors.Join(errs...)
}

// lock returns a disk that is there, and keeps other calls from it until release.
func (b *Backend) lock(name string) (_ *disk, release func(), _ error) {
	b.mu.Lock()
	d := b.disks[name]
	b.mu.Unlock()
	if d != nil {
		d.mu.Lock()
		if !d.deleted {
			return d, d.mu.Unlock, nil
		}
		d.mu.Unlock()
	}
	return nil, nil, fmt.Errorf("there is no disk %s", name)
}

// serial is what NVMe shows for a disk of EBS: its id without the dash, padded with blanks to the 20 bytes of the field.
func serial(disk string) string {
	return fmt.Sprintf("%-20s\n", strings.Replace(disk, "-", "", 1))
}
