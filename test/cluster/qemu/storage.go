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

// How long a guest is given. All is a matter of milliseconds; but emulated machines share few processors.
const (
	answerTime  = 5 * time.Second  // to answer a question
	showTime    = 10 * time.Second // to show a device that was put in
	removalTime = 20 * time.Second // to let go of a device that it does not use
	pullTime    = 2 * time.Second  // to notice that a device was pulled out
)

// Guest asks the kernel of an instance about the disk with a serial, see Model. What is nil is not asked.
type Guest struct {
	// Busy tells whether the guest holds the disk: has a file system on it mounted, or has it open exclusively. It is asked
	// right before the disk goes; what takes the disk between the two loses it.
	Busy func(ctx context.Context, serial string) (bool, error)

	// Present tells whether the guest shows the disk.
	Present func(ctx context.Context, serial string) (bool, error)
}

// Storage has the disks of one simulated cloud: it is a cloud.Backend for instances that are machines. A disk is a sparse
// image file in a directory, and to attach it is to plug a device into the machine, behind a server of its own, without
// which the machine cannot reach the image. Its methods may be called from any number of goroutines; calls that concern one
// disk wait for each other.
type Storage struct {
	*image.Disks[attachment]
	run   Runner
	dir   string
	model Model

	mu        sync.Mutex
	instances map[string]instance
	sockets   int // so far: no path is used twice
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

// NewStorage returns a storage of disks of one model, which keeps its images in a directory, made if missing. The path is to
// be short: that of a socket in it has 107 bytes at most.
func NewStorage(run Runner, dir string, model Model) (*Storage, error) {
	disks, err := image.NewDisks[attachment](dir)
	if err != nil {
		return nil, err
	}
	s := &Storage{Disks: disks, run: run, dir: dir, model: model, instances: map[string]instance{}}
	return s, os.MkdirAll(s.socket(""), 0o700)
}

func (s *Storage) socket(name string) string { return filepath.Join(s.dir, "sockets", name) }

// server returns what starts a server for a disk, with a socket whose path was never used.
func (s *Storage) server(disk string) func() (*server, error) {
	return func() (*server, error) {
		s.mu.Lock()
		s.sockets++
		socket := s.socket(strconv.Itoa(s.sockets))
		s.mu.Unlock()
		return serve(s.run, s.Image(disk), socket)
	}
}

// Register tells which machine an instance is from now on. It is called again after each power on. A machine that has ended
// has no devices; but its disks are attached to the instance, as far as the Storage knows, until they are detached.
func (s *Storage) Register(name string, m *Machine, guest Guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[name] = instance{m, guest}
}

// ResizeDisk makes a disk larger, also while it is attached, unless it is NVMe: the guest sees it as soon as it runs.
func (s *Storage) ResizeDisk(name string, bytes int64) error {
	d, release, err := s.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	a := d.Attachment
	if a != nil && s.model.Bus == NVMe {
		return fmt.Errorf("disk %s is attached to %s, and QEMU's NVMe controllers cannot grow", name, a.instance)
	}
	err = image.Grow(s.Image(name), bytes)
	if err == nil && a != nil && !a.device.left(0) {
		err = a.device.grow(bytes, s.server(name))
	}
	if err != nil {
		return fmt.Errorf("making disk %s larger: %w", name, err)
	}
	return nil
}

// Attach plugs the disk into the instance's machine. When it returns the guest shows the disk, unless it is frozen, or does
// not answer, or is very slow.
func (s *Storage) Attach(name, disk string) error {
	d, release, err := s.Lock(disk)
	if err != nil {
		return err
	}
	defer release()
	if d.Attachment != nil {
		return fmt.Errorf("disk %s is attached to %s already", disk, d.Attachment.instance)
	}
	serial, err := s.model.serial(disk)
	if err != nil {
		return err
	}
	s.mu.Lock()
	i, ok := s.instances[name]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("instance %s has no machine: Register has not been called for it", name)
	}
	// A guest may refuse a second device of the same name.
	if old := i.machine.device(serial); old != nil && !old.left(removalTime) {
		return fmt.Errorf("instance %s has not let go of disk %s yet, which was taken from it by force", name, disk)
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

// Detach takes the disk from the instance's machine.
//
// Without force it fails with cloud.ErrDeviceBusy while the guest holds the disk, is frozen or does not answer, and all is as
// it was. So it does if the guest does not hold the disk, but does not let it go in time either; then it may do so later.
//
// With force the disk is taken from the guest as if it were pulled: nothing that the guest writes reaches it from then on,
// and it can be attached elsewhere. The guest sees it go as soon as it runs.
//
// From a machine that has ended a disk is detached at once.
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
		if err := a.letsGo(); err != nil && !a.device.left(0) {
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

// awaitGone waits until the guest has noticed, where it has no say.
func (a *attachment) awaitGone(limit time.Duration) {
	if a.device.model.Bus == SCSI {
		a.awaitGuest(false, limit)
	}
}

// letsGo returns nil if the guest does not hold the device.
func (a *attachment) letsGo() error {
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

// Close takes all disks from their machines by force, and removes them and the snapshots. The machines go on.
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
