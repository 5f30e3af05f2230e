package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/image"
)

// Timeouts for guests. Usually milliseconds are enough, but emulated machines share few processors.
const (
	answerTime  = 5 * time.Second  // to answer a query
	showTime    = 10 * time.Second // to show a new device
	removalTime = 20 * time.Second // to release an unused device
	pullTime    = 2 * time.Second  // to notice a pulled device
)

// Guest queries the kernel of an instance about the disk with a serial, see Model. A nil function is not called.
type Guest struct {
	// Busy reports whether the guest has the disk mounted or opened exclusively. It is called right before the disk is removed.
	// What uses the disk in between loses it.
	Busy func(ctx context.Context, serial string) (bool, error)

	// Present reports whether the guest shows the disk.
	Present func(ctx context.Context, serial string) (bool, error)
}

// Storage stores the disks of a simulated cloud. It is a cloud.Backend for instances that are machines. A disk is a sparse
// image file. An attached disk is a device of the machine with a server of its own, which is the machine's only access to the
// image. Its methods are safe for concurrent use; calls for one disk are serialised.
type Storage struct {
	*image.Disks[attachment]
	run   Runner
	dir   string
	model Model

	mu        sync.Mutex
	instances map[string]instance
	sockets   int // counter, so that no path is reused
}

type instance struct {
	machine *Machine
	guest   Guest
}

type attachment struct {
	instance string
	guest    Guest
	device   *device
}

var _ cloud.Backend = (*Storage)(nil)

// NewStorage returns a storage for disks of one model, with its images in dir, which it creates if missing. The path must be
// short: that of a socket has at most 107 bytes.
func NewStorage(run Runner, dir string, model Model) (*Storage, error) {
	disks, err := image.NewDisks[attachment](dir)
	if err != nil {
		return nil, err
	}
	s := &Storage{Disks: disks, run: run, dir: dir, model: model, instances: map[string]instance{}}
	return s, os.MkdirAll(s.socket(""), 0o700)
}

func (s *Storage) socket(name string) string { return filepath.Join(s.dir, "sockets", name) }

// server returns a function that starts a server for a disk, with a new socket path each time.
func (s *Storage) server(disk string) func() (*server, error) {
	return func() (*server, error) {
		s.mu.Lock()
		s.sockets++
		socket := s.socket(strconv.Itoa(s.sockets))
		s.mu.Unlock()
		return serve(s.run, s.Image(disk), socket)
	}
}

// Register sets the machine of an instance. Call it after each power-on. Disks of a machine that has ended remain attached to
// the instance until they are detached.
func (s *Storage) Register(name string, m *Machine, guest Guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[name] = instance{m, guest}
}

// ResizeDisk enlarges a disk, attached or not. On NVMe it must be detached. A running guest sees the new size at once.
func (s *Storage) ResizeDisk(name string, bytes int64) error {
	d, release, err := s.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	a := d.Attachment
	if a != nil && s.model.Bus == NVMe {
		return fmt.Errorf("disk %s is attached to %s and QEMU cannot resize NVMe disks", name, a.instance)
	}
	err = image.Grow(s.Image(name), bytes)
	if err == nil && a != nil && !a.device.left(0) {
		err = a.device.grow(bytes, s.server(name))
	}
	if err != nil {
		return fmt.Errorf("resizing disk %s: %w", name, err)
	}
	return nil
}

// Attach plugs the disk into the instance's machine. It waits until the guest shows the disk, but not if the guest is frozen,
// does not answer, or is very slow.
func (s *Storage) Attach(name, disk string) error {
	d, release, err := s.Lock(disk)
	if err != nil {
		return err
	}
	defer release()
	if d.Attachment != nil {
		return fmt.Errorf("disk %s is already attached to %s", disk, d.Attachment.instance)
	}
	serial, err := s.model.serial(disk)
	if err != nil {
		return err
	}
	s.mu.Lock()
	i, ok := s.instances[name]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("instance %s has no machine: call Register first", name)
	}
	// A guest may refuse a second device with the same serial.
	if old := i.machine.device(serial); old != nil && !old.left(removalTime) {
		return fmt.Errorf("instance %s has not yet released disk %s, which was detached by force", name, disk)
	}
	dev, err := i.machine.plug(s.model, serial, s.server(disk))
	if err != nil {
		return fmt.Errorf("attaching disk %s to %s: %w", disk, name, err)
	}
	d.Attachment = &attachment{instance: name, guest: i.guest, device: dev}
	d.Attachment.awaitGuest(true, showTime)
	return nil
}

// awaitGuest waits until the guest shows the disk, or does not.
func (a *attachment) awaitGuest(shows bool, limit time.Duration) {
	if a.guest.Present == nil || a.device.m.frozen() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		ask, done := context.WithTimeout(ctx, answerTime)
		present, err := a.guest.Present(ask, a.device.serial)
		done()
		if present == shows || err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-a.device.m.ended:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Detach removes the disk from the instance's machine.
//
// Without force it returns cloud.ErrDeviceBusy, and changes nothing, while the guest uses the disk, is frozen or does not
// answer. It returns the same if the guest does not release an unused disk in time; the guest may still do so later.
//
// With force it pulls the disk: no further writes of the guest reach it, and it can be attached elsewhere. The guest notices
// when it runs.
//
// From a machine that has ended, a disk is detached at once.
func (s *Storage) Detach(name, disk string, force bool) error {
	d, release, err := s.Lock(disk)
	if err != nil {
		return err
	}
	defer release()
	if d.Attachment == nil || d.Attachment.instance != name {
		return fmt.Errorf("disk %s is not attached to %s", disk, name)
	}
	if force {
		d.Attachment.pull()
	} else if err := d.Attachment.ask(); err != nil {
		return fmt.Errorf("detaching disk %s from %s: %w", disk, name, err)
	}
	d.Attachment = nil
	return nil
}

func (a *attachment) pull() {
	a.device.server.kill()
	a.device.remove()
	if !a.device.left(0) && !a.device.m.frozen() {
		a.device.left(pullTime)
	}
	a.awaitGone(pullTime)
}

func (a *attachment) ask() error {
	if !a.device.isRemoving() {
		if err := a.checkUnused(); err != nil && !a.device.left(0) {
			return err
		}
		a.device.remove()
	} else if !a.device.left(0) && a.device.m.frozen() {
		return fmt.Errorf("%w: the machine is frozen", cloud.ErrDeviceBusy)
	}
	if !a.device.left(removalTime) {
		return fmt.Errorf("%w: it does not answer", cloud.ErrDeviceBusy)
	}
	a.awaitGone(removalTime)
	return nil
}

// awaitGone waits until a guest that cannot refuse the removal has noticed it.
func (a *attachment) awaitGone(limit time.Duration) {
	if a.device.model.Bus == SCSI {
		a.awaitGuest(false, limit)
	}
}

// checkUnused returns nil if the guest does not use the device.
func (a *attachment) checkUnused() error {
	if a.device.m.frozen() {
		return fmt.Errorf("%w: the machine is frozen", cloud.ErrDeviceBusy)
	}
	if a.guest.Busy == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	busy, err := a.guest.Busy(ctx, a.device.serial)
	if err != nil {
		return fmt.Errorf("%w: %w", cloud.ErrDeviceBusy, err)
	}
	if busy {
		return cloud.ErrDeviceBusy
	}
	return nil
}

// Close detaches all disks by force and removes them and the snapshots. The machines continue.
func (s *Storage) Close() error {
	s.mu.Lock()
	s.instances = map[string]instance{} // nothing is attached any more
	s.mu.Unlock()
	return errors.Join(s.Remove(func(_ string, d *image.Disk[attachment]) error {
		d.Attachment.device.server.kill()
		d.Attachment.device.remove()
		d.Attachment = nil
		return nil
	}), os.RemoveAll(s.socket("")))
}
