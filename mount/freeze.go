package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFreeze is the longest that Freeze holds writes up.
const MaxFreeze = 3 * time.Second

// closeTimeout is how long Close waits for file systems to thaw.
const closeTimeout = time.Second

// ioctls of file systems (Linux, include/uapi/linux/fs.h).
const (
	fiFreeze = 0xc0045877 // FIFREEZE, _IOWR('X', 119, int)
	fiThaw   = 0xc0045878 // FITHAW, _IOWR('X', 120, int)
)

var (
	errThaw        = errors.New("thawed by its caller")
	errFreezeLimit = errors.New("the freeze has reached its limit")
	errClosed      = errors.New("blockvol stops")
)

// Freeze freezes the file system staged at dir, wherever it is mounted: what was written is on the disk, and new writes wait. A copy of
// the disk that begins now is complete, and needs no repair. (xfs leaves its log to be replayed by the next mount.)
//
// The freeze ends when thaw is called. If it has ended before, thaw returns ErrThawed: the copy is like one after a power failure. It
// ends by itself after the limit, at most MaxFreeze, which begins with the first write that waits; and with Close. It does not end
// with ctx, nor with this process: see Thaw.
//
// Other calls that work on the device or the directory, Unstage too, wait until the freeze has ended.
//
// The kernel writes out first, and cannot be interrupted. Freeze lets it write as much as possible before anybody has to wait.
// When ctx ends or the limit is reached before the file system is frozen, Freeze returns ErrFreezing: the kernel may freeze the file
// system yet, and then it is thawed at once.
//
// Errors: ErrFreezing; ErrBusy if it is frozen already; ErrNotStaged, ErrNoDevice, ErrWrongDevice.
func (h *Host) Freeze(ctx context.Context, disk Device, dir string, limit time.Duration) (thaw func() error, err error) {
	path, releaseDevice, err := h.claimVolume(ctx, disk, dir)
	if err != nil {
		return nil, err
	}
	releaseDir, err := h.claimDir(ctx, path)
	if err != nil {
		releaseDevice()
		return nil, err
	}
	root, err := h.openVolume(disk, path)
	if err != nil {
		releaseDir()
		releaseDevice()
		return nil, fmt.Errorf("%w; it is not frozen", err)
	}
	f := &freeze{root: root, device: disk.Path, frozen: make(chan error, 1), done: make(chan struct{})}
	f.held, f.end = context.WithCancelCause(h.life)
	h.freezes.Go(func() {
		defer releaseDevice()
		defer releaseDir()
		f.run(min(limit, MaxFreeze))
	})
	select {
	case err = <-f.frozen:
		if err != nil {
			f.end(err)
			return nil, err
		}
		return f.thaw, nil
	case <-ctx.Done():
		f.end(context.Cause(ctx))
	case <-f.held.Done():
	}
	return nil, fmt.Errorf("%w: device %s: %w", ErrFreezing, disk.Path, context.Cause(f.held))
}

// openVolume opens the directory where the volume on a disk is staged.
func (h *Host) openVolume(disk Device, path string) (*os.File, error) {
	f, err := h.open(disk, os.O_RDONLY) // until the file system is open, so that no other disk gets its name
	if err != nil {
		return nil, err
	}
	defer f.Close()
	top, err := h.topOf(disk)
	if err != nil {
		return nil, err
	}
	root, _, err := openStaged(path, top)
	return root, err
}

// freeze is a file system that is frozen for a while. Its end has one cause, the first.
type freeze struct {
	root   *os.File // a directory of the file system
	device string
	held   context.Context // ends when the file system is to thaw
	end    context.CancelCauseFunc
	frozen chan error    // what the kernel answers, if the file system is still to be frozen then
	done   chan struct{} // closed when it is not frozen any more; err is set
	err    error
}

// run freezes the file system, and thaws it at the end.
func (f *freeze) run(limit time.Duration) {
	defer close(f.done)
	defer f.root.Close()
	err := unix.Syncfs(int(f.root.Fd()))
	switch {
	case f.held.Err() != nil:
		return
	case err != nil:
		f.frozen <- fmt.Errorf("the file system of device %s cannot be written out, and is not frozen: %w", f.device, err)
		return
	}
	watchdog := time.AfterFunc(limit, func() { f.end(errFreezeLimit) })
	defer watchdog.Stop()
	switch err := ioctl(f.root, fiFreeze, new(int32)); {
	case errors.Is(err, unix.EBUSY):
		f.frozen <- fmt.Errorf("%w: the file system of device %s is frozen already, by another program; see which, or thaw it with fsfreeze --unfreeze", ErrBusy, f.device)
		return
	case err != nil:
		f.frozen <- fmt.Errorf("the file system of device %s cannot be frozen: %w", f.device, err)
		return
	}
	f.frozen <- nil
	<-f.held.Done()
	thawed, err := thawFS(f.root)
	cause := context.Cause(f.held)
	switch {
	case err != nil:
		f.err = fmt.Errorf("the file system of device %s stays frozen: %w; thaw it with fsfreeze --unfreeze", f.device, err)
	case !thawed:
		f.err = fmt.Errorf("%w: device %s: another program has thawed it", ErrThawed, f.device)
	case !errors.Is(cause, errThaw):
		f.err = fmt.Errorf("%w: device %s: %w", ErrThawed, f.device, cause)
	}
}

func (f *freeze) thaw() error {
	f.end(errThaw)
	<-f.done
	return f.err
}

// waitThawed waits until no freeze is under way.
func (h *Host) waitThawed(timeout time.Duration) error {
	thawed := make(chan struct{})
	go func() { h.freezes.Wait(); close(thawed) }()
	select {
	case <-thawed:
		return nil
	case <-time.After(timeout):
		return errors.New("the kernel is still freezing a file system: the next start thaws it")
	}
}

// thawFS thaws a file system, and returns whether it was frozen. root is any directory of it.
func thawFS(root *os.File) (bool, error) {
	err := ioctl(root, fiThaw, new(int32))
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return err == nil, err
}

// Thaw thaws the volume's file system if a killed process has left it frozen, and returns whether it was: the kernel does not thaw it, nor
// does it tell that a file system is frozen. One that is not staged at dir any more is found by its device. Thawing what another program
// has frozen spoils that program's copy, so call Thaw only after Freeze.
func (h *Host) Thaw(ctx context.Context, disk Device, dir string) (thawed bool, err error) {
	path, release, err := h.claimVolume(ctx, disk, dir)
	if err != nil {
		return false, err
	}
	defer release()
	top, err := h.topOf(disk)
	if err != nil {
		return false, err
	}
	root, _, err := openStaged(path, top)
	if errors.Is(err, ErrNotStaged) {
		root, err = h.openMounted(disk, top)
	}
	if root == nil || err != nil {
		return false, err
	}
	defer root.Close()
	if thawed, err = thawFS(root); err != nil {
		err = fmt.Errorf("the file system of device %s stays frozen: %w", top.Path, err)
	}
	return thawed, err
}

// openMounted opens the root of the file system that the kernel holds on a device, wherever it is mounted, if at all. It returns nil
// if there is none.
func (h *Host) openMounted(disk, top Device) (root *os.File, err error) {
	fstype, err := mountedOn(top)
	if err != nil || fstype == "" {
		return nil, err
	}
	f, err := h.open(disk, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var m *os.File
	for _, options := range [][]string{{"rw"}, {"ro"}} { // as it is mounted
		if m, err = mountDetached(top, fstype, parseOptions(fstype, options)); !errors.Is(err, ErrBusy) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if root, err = openDir(m, "."); err != nil {
		return nil, err
	}
	if err = verifyDeviceOf(root, top, fstype); err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}
