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

// sector is the block size that devices show.
const sector = 4096

// loops returns the loop devices of this kernel by the base name of their backing file. That name stays true when the
// mount namespace that they were set up in is gone; the rest of the path does not.
func (p *Provider) loops() (map[string][]string, error) {
	block := filepath.Join(p.sysfs, "block")
	entries, err := os.ReadDir(block)
	if err != nil {
		return nil, fmt.Errorf("cannot list the block devices: %w", err)
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

// loopsOf returns the loop devices that show the volume's image.
func (p *Provider) loopsOf(id string) ([]string, error) {
	devices, err := p.loops()
	return devices[id+ready], err
}

// backing returns the base name of a loop device's backing file, empty if it has none.
func (p *Provider) backing(device string) (string, error) {
	data, err := os.ReadFile(filepath.Join(p.sysfs, "block", device, "loop", "backing_file"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("cannot tell what %s is: %w", device, err)
	}
	path := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), " (deleted)")
	if path == "" {
		return "", nil
	}
	return filepath.Base(path), nil
}

// openLoop opens a loop device's node.
func (p *Provider) openLoop(device string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(p.dev, device), flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the kernel has %s, but %s has no node for it: bind the host's /dev to %s: %w", device, p.dev, p.dev, err)
	}
	return f, err
}

// setUp gives the image a loop device.
func (p *Provider) setUp(ctx context.Context, id string) error {
	control, err := p.openLoop("loop-control", os.O_RDWR)
	if err != nil {
		return fmt.Errorf("no loop devices here (modprobe loop may help): %w", err)
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
	return poll(ctx, func() (bool, error) {
		device, release, err := p.freeLoop(control)
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
		if errors.Is(err, unix.EBUSY) { // another process was given the same device
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("cannot set up %s: %w", device, err)
		}
		return true, nil
	})
}

// freeLoop returns a loop device that nobody uses, kept from this process's other goroutines until release. LOOP_CTL_GET_FREE
// names the same one to all who ask until one of them has set it up, which takes the kernel milliseconds; so whoever
// comes second looks for another one himself, or has the kernel make one.
func (p *Provider) freeLoop(control *os.File) (device string, release func(), err error) {
	p.taking.Lock()
	defer p.taking.Unlock()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return "", nil, fmt.Errorf("the kernel gives no loop device: %w", err)
	}
	for device = loopName(n); p.taken[device]; device = loopName(n) {
		if n, err = p.nextFree(control, n+1); err != nil {
			return "", nil, err
		}
	}
	if p.taken == nil {
		p.taken = map[string]bool{}
	}
	p.taken[device] = true
	return device, func() {
		p.taking.Lock()
		defer p.taking.Unlock()
		delete(p.taken, device)
	}, nil
}

// nextFree returns the number of the first loop device from n on that shows nothing, made if it is not there.
func (p *Provider) nextFree(control *os.File, n int) (int, error) {
	for ; ; n++ {
		if p.taken[loopName(n)] {
			continue
		}
		if _, err := os.Stat(filepath.Join(p.sysfs, "block", loopName(n))); errors.Is(err, fs.ErrNotExist) {
			err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, n)
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return 0, fmt.Errorf("the kernel gives no further loop device: %w", err)
			}
			return n, nil
		}
		if name, err := p.backing(loopName(n)); err != nil || name == "" {
			return n, err
		}
	}
}

func loopName(n int) string { return fmt.Sprintf("loop%d", n) }

// allowsDirect tells whether direct I/O to the image is safe. File systems that checksum data find fault with what the
// file system above changes while it is on its way.
func allowsDirect(image *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(image.Fd()), &st); err != nil {
		return false, err
	}
	return st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC, nil
}

// keep makes sure that a device shows this very image, and stays when its last user closes it.
func (p *Provider) keep(device string, image *os.File) (bool, error) {
	f, err := p.openLoop(device, os.O_RDWR)
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close()
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) { // cleared in this moment
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("cannot tell what %s is: %w", device, err)
	}
	info, err := image.Stat()
	if err != nil {
		return false, err
	}
	st := info.Sys().(*syscall.Stat_t)
	if status.Device != st.Dev || status.Inode != st.Ino {
		return false, fmt.Errorf("%w: /dev/%s shows another file named %s; two disks of one identity cannot be told apart: detach it with losetup -d",
			providers.ErrBusy, device, filepath.Base(image.Name()))
	}
	if status.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 {
		status.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		if err := unix.IoctlLoopSetStatus64(int(f.Fd()), status); errors.Is(err, unix.ENXIO) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("cannot keep %s: %w", device, err)
		}
	}
	return true, nil
}

// regrow tells a device of its image's new size.
func (p *Provider) regrow(device string, image *os.File) error {
	if ok, err := p.keep(device, image); err != nil || !ok {
		return err
	}
	f, err := p.openLoop(device, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("cannot grow /dev/%s: %w", device, err)
	}
	return nil
}

// tearDown takes the device from the image, unless the kernel has a file system or anything else on it. Opened
// exclusively, it cannot be mounted meanwhile.
func (p *Provider) tearDown(device, id string) error {
	if err := p.disks.step("clear", device); err != nil {
		return err
	}
	f, err := p.openLoop(device, os.O_RDWR|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: the kernel holds a file system on /dev/%s: some container or process still has it mounted", providers.ErrBusy, device)
	} else if errors.Is(err, unix.ENXIO) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	// Only now, held open, does it stay what it is.
	if shows, err := p.shows(f, p.disks.path(id, ready)); err != nil || !shows {
		return err
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("cannot detach /dev/%s: %w", device, err)
	}
	return nil
}

// shows tells whether an open loop device shows that very image; another file of the same name is an error.
func (p *Provider) shows(f *os.File, image string) (bool, error) {
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("cannot tell what %s is: %w", f.Name(), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		return false, err
	}
	if status.Device == st.Dev && status.Inode == st.Ino {
		return true, nil
	}
	if name, err := p.backing(filepath.Base(f.Name())); err != nil || name != filepath.Base(image) {
		return false, err
	}
	return false, fmt.Errorf("%w: %s shows another file named %s: detach it with losetup -d", providers.ErrBusy, f.Name(), filepath.Base(image))
}
