package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/test/cloud"
)

// sector is the logical block size of the devices.
const sector = 4096

func devicePath(device string) string { return filepath.Join("/dev", device) }

// setUp attaches a loop device to an image.
func (b *Backend) setUp(image string) (device string, err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("opening /dev/loop-control (try modprobe loop): %w", err)
	}
	defer control.Close()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: sector}
	copy(config.Info.File_name[:], filepath.Base(image))
	if direct, err := directSafe(f); err != nil {
		return "", err
	} else if direct {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}

	// LOOP_CTL_GET_FREE returns the same device to all callers until one of them has set it up. The lock serialises this
	// process; another process can still win, and then this one retries.
	b.configuring.Lock()
	defer b.configuring.Unlock()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("getting a free loop device: %w", err)
		}
		device := "loop" + strconv.Itoa(n)
		if err := configure(device, &config); err == nil {
			return device, nil
		} else if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return "", fmt.Errorf("setting up %s: %w", device, err)
		}
	}
}

func configure(device string, config *unix.LoopConfig) error {
	f, err := os.OpenFile(devicePath(device), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlLoopConfigure(int(f.Fd()), config)
}

// directSafe reports whether direct I/O to the image is safe. On file systems with data checksums it is not: the checksum fails
// when the data changes during the write.
func directSafe(image *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(image.Fd()), &st); err != nil {
		return false, err
	}
	return st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC, nil
}

// clearDevice detaches a loop device from its image. It calls before when nothing prevents that any more.
func clearDevice(device, image string, force bool, before func(f *os.File) error) error {
	// A child process has copies of all open files until its exec, and would keep the device busy. So no child may start
	// meanwhile.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	// An exclusive open fails while the device is in use, and prevents a mount meanwhile.
	f, err := os.OpenFile(devicePath(device), os.O_RDWR|unix.O_EXCL, 0)
	held := errors.Is(err, unix.EBUSY)
	if held && force {
		f, err = os.OpenFile(devicePath(device), os.O_RDWR, 0)
	}
	if held && !force {
		return fmt.Errorf("%w: %s is mounted or opened exclusively", cloud.ErrDeviceBusy, devicePath(device))
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := before(f); err != nil {
		return err
	}
	// The open device cannot change any more. If someone has called losetup -d, it may have another image.
	ours, err := hasImage(f, image)
	if err != nil || !ours {
		return err
	}
	if held {
		if err := invalidate(f); err != nil {
			return err
		}
	}
	// The kernel clears the device at the last close: ours, unless another program has it open.
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clearing %s: %w", f.Name(), err)
	}
	return nil
}

// invalidate removes the image's data from the device: programs and file systems that use it get I/O errors from now on, as
// after a pulled disk.
func invalidate(f *os.File) error {
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err == nil {
		status.Offset = 1 << 62 // beyond the end of any file
		err = unix.IoctlLoopSetStatus64(int(f.Fd()), status)
	}
	if err != nil {
		return fmt.Errorf("invalidating %s: %w", f.Name(), err)
	}
	return nil
}

// hasImage reports whether an open loop device is attached to this image.
func hasImage(f *os.File, image string) (bool, error) {
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		return false, err
	}
	return status.Device == st.Dev && status.Inode == st.Ino, nil
}

// announce makes the kernel read the image's size again and send an event, even if the size is the same (Linux,
// drivers/block/loop.c, loop_set_size).
func announce(f *os.File) error {
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("updating the size of %s: %w", f.Name(), err)
	}
	return nil
}

func announceDevice(device string) error {
	f, err := os.OpenFile(devicePath(device), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return announce(f)
}
