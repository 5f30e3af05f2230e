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

// sector is the block size that devices show.
const sector = 4096

func devicePath(device string) string { return filepath.Join("/dev", device) }

// setUp gives an image a loop device, that stays until it is cleared.
func (b *Backend) setUp(image string) (device string, err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("no loop devices here (modprobe loop may help): %w", err)
	}
	defer control.Close()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: sector}
	copy(config.Info.File_name[:], filepath.Base(image))
	if direct, err := bearsDirect(f); err != nil {
		return "", err
	} else if direct {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}

	// The kernel names the same free device to all who ask, until one of them has set it up. In this process that is one at a
	// time; who loses against another process asks again.
	b.configuring.Lock()
	defer b.configuring.Unlock()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("the kernel gives no loop device: %w", err)
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

// bearsDirect tells whether direct I/O to the image is safe. File systems that checksum data find fault with what the
// file system above changes while it is on its way.
func bearsDirect(image *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(image.Fd()), &st); err != nil {
		return false, err
	}
	return st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC, nil
}

// clearDevice takes a loop device from its image, after before, which is called when nothing stands in the way any more.
func clearDevice(device, image string, force bool, before func(f *os.File) error) error {
	// A program that is just being started has a copy of every open file until its exec is done, and the device would be
	// held, and not be cleared, until then. So none is started meanwhile.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	// An exclusive open fails while anybody has the device for himself, and keeps it from being mounted meanwhile.
	f, err := os.OpenFile(devicePath(device), os.O_RDWR|unix.O_EXCL, 0)
	held := errors.Is(err, unix.EBUSY)
	if held && force {
		f, err = os.OpenFile(devicePath(device), os.O_RDWR, 0)
	}
	if held && !force {
		return fmt.Errorf("%w: %s is mounted, or a program has it for itself", cloud.ErrDeviceBusy, devicePath(device))
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := before(f); err != nil {
		return err
	}
	// Only now, held open, does it stay what it is. It is not ours any more if somebody has called losetup -d.
	ours, err := shows(f, image)
	if err != nil || !ours {
		return err
	}
	if held {
		if err := empty(f); err != nil {
			return err
		}
	}
	// The kernel clears it at the last close, which is here unless somebody else has it open.
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clearing %s: %w", f.Name(), err)
	}
	return nil
}

// empty leaves nothing of the image in the device: whoever has it open or mounted meets errors from now on, as with a disk
// that was pulled.
func empty(f *os.File) error {
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err == nil {
		status.Offset = 1 << 62 // beyond the end of any file
		err = unix.IoctlLoopSetStatus64(int(f.Fd()), status)
	}
	if err != nil {
		return fmt.Errorf("taking %s from those who hold it: %w", f.Name(), err)
	}
	return nil
}

// shows tells whether an open loop device shows that very image.
func shows(f *os.File, image string) (bool, error) {
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

// announce has the kernel look at the size of the device's image anew. It sends an event about the device then, be the size
// another or not (Linux, drivers/block/loop.c, loop_set_size).
func announce(f *os.File) error {
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("having the kernel look at %s: %w", f.Name(), err)
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
