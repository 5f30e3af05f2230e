package namespace

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Loops returns the loop devices, as paths in /dev, that are attached to files in a directory. It compares files by device and
// inode, because the path in sysfs depends on the mount namespace in which the device was attached.
func Loops(dir string) ([]string, error) {
	type file struct{ device, inode uint64 }
	files := map[file]bool{}
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				stat := info.Sys().(*syscall.Stat_t)
				files[file{stat.Dev, stat.Ino}] = true
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	var loops []string
	for _, entry := range attached {
		loop := filepath.Join("/dev", filepath.Base(filepath.Dir(entry)))
		device, err := os.Open(loop)
		if err != nil {
			return nil, err
		}
		status, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
		device.Close()
		if err == nil && files[file{status.Device, status.Inode}] {
			loops = append(loops, loop)
		}
	}
	return loops, nil
}

// detachLoops detaches the loop devices on files in a directory. It returns an error if it found any, so the caller calls again.
func detachLoops(dir string) error {
	loops, err := Loops(dir)
	if err != nil {
		return err
	}
	for _, loop := range loops {
		device, openErr := os.Open(loop)
		if openErr != nil {
			return openErr
		}
		// The kernel detaches a device in use when its last user closes it.
		err = errors.Join(err, unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0), device.Close())
	}
	if len(loops) > 0 {
		err = errors.Join(err, errors.New("loop devices are attached to files in "+dir))
	}
	return err
}
