// Package image stores the contents of simulated disks in sparse files.
package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Make creates the file of a disk of this size, blank or with the contents of another file. It fails if the file exists or the
// other is larger.
func Make(path string, bytes int64, from string) (err error) {
	if from != "" {
		err = Copy(from, path)
	} else {
		err = create(path)
	}
	if err != nil {
		return err
	}
	if err := Grow(path, bytes); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Grow enlarges a file by a hole. It fails if the file is larger already.
func Grow(path string, bytes int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if bytes < info.Size() {
		return fmt.Errorf("%s has %d bytes and cannot be made smaller: %d", path, info.Size(), bytes)
	}
	return os.Truncate(path, bytes)
}

// Copy copies a sparse file. It fails if the copy exists.
func Copy(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, dst.Close()); err != nil {
			err = errors.Join(err, os.Remove(to))
		}
	}()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err == nil {
		return nil
	}
	// The file system does not share blocks.
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for hole := int64(0); ; {
		data, err := src.Seek(hole, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		} else if err != nil {
			return err
		}
		if hole, err = src.Seek(data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := src.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, hole-data); err != nil {
			return err
		}
	}
}
