package image

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Disks are the disks and snapshots of one simulated cloud, in a directory: what cloud.Backends have in common. What is known
// of an attachment, A, is the backend's.
//
// The methods may be called from any number of goroutines; calls that concern one disk wait for each other. What a snapshot
// holds is a copy made at no single moment. A writer that is to be found as after a power loss must be still meanwhile, unless
// the directory is on a file system that shares blocks of files (xfs, btrfs).
type Disks[A any] struct {
	dir string

	mu    sync.Mutex
	disks map[string]*Disk[A]
}

// Disk is one that is locked.
type Disk[A any] struct {
	Attachment *A // nil while there is none

	mu      sync.Mutex
	deleted bool
}

// NewDisks returns disks whose files are in a directory, made if missing.
func NewDisks[A any](dir string) (*Disks[A], error) {
	d := &Disks[A]{dir: dir, disks: map[string]*Disk[A]{}}
	for _, sub := range []string{d.Image(""), d.copy("")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Image returns the path of a disk's file.
func (d *Disks[A]) Image(disk string) string { return filepath.Join(d.dir, "disks", disk) }

func (d *Disks[A]) copy(snapshot string) string { return filepath.Join(d.dir, "snapshots", snapshot) }

// CreateDisk makes a disk of so many bytes, blank or with what a snapshot holds.
func (d *Disks[A]) CreateDisk(name string, bytes int64, snapshot string) error {
	disk := &Disk[A]{}
	disk.mu.Lock() // until it is whole
	defer disk.mu.Unlock()
	d.mu.Lock()
	if d.disks[name] != nil {
		d.mu.Unlock()
		return fmt.Errorf("disk %s exists", name)
	}
	d.disks[name] = disk
	d.mu.Unlock()

	from := ""
	if snapshot != "" {
		from = d.copy(snapshot)
	}
	if err := Make(d.Image(name), bytes, from); err != nil {
		d.forget(name, disk)
		return err
	}
	return nil
}

// DeleteDisk deletes a disk that is attached nowhere.
func (d *Disks[A]) DeleteDisk(name string) error {
	disk, release, err := d.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	if disk.Attachment != nil {
		return fmt.Errorf("disk %s is attached", name)
	}
	if err := os.Remove(d.Image(name)); err != nil {
		return err
	}
	d.forget(name, disk)
	return nil
}

func (d *Disks[A]) forget(name string, disk *Disk[A]) {
	disk.deleted = true
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.disks, name)
}

// CopyDisk makes a snapshot of a disk, also while it is attached: of what has reached the file.
func (d *Disks[A]) CopyDisk(name, snapshot string) error {
	_, release, err := d.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	return Copy(d.Image(name), d.copy(snapshot))
}

// DeleteSnapshot deletes a snapshot. Disks made of it do not need it.
func (d *Disks[A]) DeleteSnapshot(snapshot string) error { return os.Remove(d.copy(snapshot)) }

// Lock returns a disk that is there, and keeps other calls from it until release.
func (d *Disks[A]) Lock(name string) (_ *Disk[A], release func(), _ error) {
	d.mu.Lock()
	disk := d.disks[name]
	d.mu.Unlock()
	if disk != nil {
		disk.mu.Lock()
		if !disk.deleted {
			return disk, disk.mu.Unlock, nil
		}
		disk.mu.Unlock()
	}
	return nil, nil, fmt.Errorf("there is no disk %s", name)
}

// Remove removes all disks and snapshots. Detach is called before for each disk that is attached; nothing may be attached
// meanwhile.
func (d *Disks[A]) Remove(detach func(name string, disk *Disk[A]) error) error {
	d.mu.Lock()
	names := slices.Collect(maps.Keys(d.disks))
	d.mu.Unlock()
	var errs []error
	for _, name := range names {
		if disk, release, err := d.Lock(name); err == nil {
			if disk.Attachment != nil {
				errs = append(errs, detach(name, disk))
			}
			release()
		}
	}
	return errors.Join(append(errs, os.RemoveAll(d.Image("")), os.RemoveAll(d.copy("")))...)
}
