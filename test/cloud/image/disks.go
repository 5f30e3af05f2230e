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

// Disks are the disks and snapshots of a simulated cloud in a directory. A is what a cloud.Backend knows of an attachment.
//
// The methods are safe for concurrent use; calls for one disk are serialised. A snapshot is not taken at a single point in
// time. For a crash-consistent one, writers must pause, unless the file system shares blocks of files (xfs, btrfs).
type Disks[A any] struct {
	dir string

	mu    sync.Mutex
	disks map[string]*Disk[A]
}

// Disk is a disk, locked by Disks.Lock.
type Disk[A any] struct {
	Attachment *A // nil if not attached

	mu      sync.Mutex
	deleted bool
}

// NewDisks returns the disks in dir, which it creates if missing.
func NewDisks[A any](dir string) (*Disks[A], error) {
	d := &Disks[A]{dir: dir, disks: map[string]*Disk[A]{}}
	for _, sub := range []string{d.Image(""), d.Snapshot("")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Image returns the path of a disk's file.
func (d *Disks[A]) Image(disk string) string { return filepath.Join(d.dir, "disks", disk) }

// Snapshot returns the path of a snapshot's file.
func (d *Disks[A]) Snapshot(snapshot string) string {
	return filepath.Join(d.dir, "snapshots", snapshot)
}

// CreateDisk creates a disk of this size, blank or from a snapshot.
func (d *Disks[A]) CreateDisk(name string, bytes int64, snapshot string) error {
	disk := &Disk[A]{}
	disk.mu.Lock() // until it is complete
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
		from = d.Snapshot(snapshot)
	}
	if err := Make(d.Image(name), bytes, from); err != nil {
		d.forget(name, disk)
		return err
	}
	return nil
}

// DeleteDisk deletes a disk that is not attached.
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

// CopyDisk makes a snapshot of a disk, attached or not, from the data that has reached the file.
func (d *Disks[A]) CopyDisk(name, snapshot string) error {
	_, release, err := d.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	return Copy(d.Image(name), d.Snapshot(snapshot))
}

// DeleteSnapshot deletes a snapshot. Disks created from it do not need it.
func (d *Disks[A]) DeleteSnapshot(snapshot string) error { return os.Remove(d.Snapshot(snapshot)) }

// Lock returns an existing disk and blocks other calls for it until release.
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
	return nil, nil, fmt.Errorf("no such disk: %s", name)
}

// Remove removes all disks and snapshots. It calls detach for each attached disk before. Nothing may be attached meanwhile.
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
	return errors.Join(append(errs, os.RemoveAll(d.Image("")), os.RemoveAll(d.Snapshot("")))...)
}
