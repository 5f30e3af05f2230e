package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// sector is the block size of the devices, in bytes.
const sector = 4096

// loops returns this kernel's loop devices by the base name of their backing file.
func (p *Provider) loops() (map[string][]string, error) {
	entries, err := os.ReadDir(filepath.Join(p.sysfs, "block"))
	if err != nil {
		return nil, fmt.Errorf("the block devices cannot be listed: %w", err)
	}
	devices := map[string][]string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "loop") {
			continue
		}
		if name, err := p.backing(e.Name()); err != nil {
			return nil, err
		} else if name != "" {
			devices[name] = append(devices[name], e.Name())
		}
	}
	return devices, nil
}

// loopsOf returns the loop devices of the volume's image.
func (p *Provider) loopsOf(id string) ([]string, error) {
	devices, err := p.loops()
	return devices[id+ready], err
}

// backing returns the base name of a loop device's backing file, or "". The rest of its path is that of the mount namespace
// in which the device was set up, which may no longer exist.
func (p *Provider) backing(device string) (string, error) {
	data, err := os.ReadFile(filepath.Join(p.sysfs, "block", device, "loop", "backing_file"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("the backing file of %s is unknown: %w", device, err)
	}
	path := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), " (deleted)")
	if path == "" {
		return "", nil
	}
	return filepath.Base(path), nil
}

func (p *Provider) openLoop(device string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(p.dev, device), flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the kernel has %s, but there is no device node in %s: bind the host's /dev to %s: %w", device, p.dev, p.dev, err)
	}
	return f, err
}

// setUp gives the image a loop device.
func (p *Provider) setUp(ctx context.Context, id string) error {
	control, err := p.openLoop("loop-control", os.O_RDWR)
	if err != nil {
		return fmt.Errorf("there are no loop devices (try modprobe loop): %w", err)
	}
	defer control.Close()
	image, err := os.OpenFile(p.disks.path(id, ready), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	config := unix.LoopConfig{Fd: uint32(image.Fd()), Size: sector}
	copy(config.Info.File_name[:], id+ready)
	if direct, err := allowsDirect(image); err != nil {
		return err
	} else if direct {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	return poll(ctx, "a loop device", func() (bool, error) {
		device, release, err := p.reserveLoop(control)
		if err != nil {
			return false, err
		}
		defer release()
		f, err := p.openLoop(device, os.O_RDWR)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		defer f.Close()
		err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
		if errors.Is(err, unix.EBUSY) { // another process has got the same device
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("%s cannot be set up: %w", device, err)
		}
		return true, nil
	})
}

// reserveLoop returns an unused loop device, reserved among this process's goroutines until release. LOOP_CTL_GET_FREE returns
// the same device to all callers until one has set it up, which takes milliseconds. So the second caller takes the next one.
func (p *Provider) reserveLoop(control *os.File) (device string, release func(), err error) {
	p.reserving.Lock()
	defer p.reserving.Unlock()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	for ; err == nil; n++ {
		device = fmt.Sprintf("loop%d", n)
		if p.reserved[device] {
			continue
		}
		if err = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, n); err != nil && !errors.Is(err, unix.EEXIST) {
			break
		}
		var name string
		if name, err = p.backing(device); err != nil || name != "" {
			continue
		}
		p.reserved[device] = true
		return device, func() {
			p.reserving.Lock()
			defer p.reserving.Unlock()
			delete(p.reserved, device)
		}, nil
	}
	return "", nil, fmt.Errorf("the kernel has no free loop device: %w", err)
}

// allowsDirect reports whether direct I/O to the image is safe. It is not on a file system with checksums of data, because the
// file system above can change a block while it is written.
func allowsDirect(image *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(image.Fd()), &st); err != nil {
		return false, err
	}
	return st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC, nil
}

// openOf opens a loop device if its backing file is this very image, which holds while it is open, and returns no file if it is
// not. Errors: ErrBusy if the backing file is another of the same name.
func (p *Provider) openOf(image, device string, flags int) (*os.File, *unix.LoopInfo64, error) {
	f, err := p.openLoop(device, flags)
	if errors.Is(err, unix.ENXIO) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err == nil {
		var info fs.FileInfo
		if info, err = os.Stat(image); err == nil {
			st := info.Sys().(*syscall.Stat_t)
			if status.Device == st.Dev && status.Inode == st.Ino {
				return f, status, nil
			}
			var name string
			if name, err = p.backing(device); err == nil && name == filepath.Base(image) {
				err = fmt.Errorf("%w: /dev/%s is another file named %s, and two disks with one identity cannot be told apart: detach it with losetup -d", providers.ErrBusy, device, name)
			}
		}
	}
	f.Close()
	if errors.Is(err, unix.ENXIO) { // detached just now
		err = nil
	}
	return nil, nil, err
}

// keep makes the image's device stay when its last user closes it. It reports whether the device still is the image's.
func (p *Provider) keep(device, image string) (bool, error) {
	f, status, err := p.openOf(image, device, os.O_RDWR)
	if err != nil || f == nil {
		return false, err
	}
	defer f.Close()
	if status.Flags&unix.LO_FLAGS_AUTOCLEAR == 0 {
		return true, nil
	}
	status.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	err = unix.IoctlLoopSetStatus64(int(f.Fd()), status)
	if errors.Is(err, unix.ENXIO) { // detached just now
		return false, nil
	}
	return err == nil, err
}

// regrow gives a device its image's new size.
func (p *Provider) regrow(device, image string) error {
	f, _, err := p.openOf(image, device, os.O_RDWR)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("/dev/%s cannot be enlarged: %w", device, err)
	}
	return nil
}

// tearDown detaches the device from the image, unless the kernel has a file system or anything else on it. While it is open
// exclusively, it cannot be mounted.
func (p *Provider) tearDown(device, id string) error {
	if err := p.disks.step("clear", device); err != nil {
		return err
	}
	f, _, err := p.openOf(p.disks.path(id, ready), device, os.O_RDWR|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: the kernel has a file system on /dev/%s: a container or process still has it mounted", providers.ErrBusy, device)
	} else if err != nil || f == nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("/dev/%s cannot be detached: %w", device, err)
	}
	return nil
}
