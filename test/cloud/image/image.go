// Package image keeps what is on simulated disks in sparse files.
package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Make makes the file of a disk of so many bytes, blank or with what another file holds, "" being none. It fails if there is
// such a file, or if the other is larger.
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

// Grow makes a file larger, by a hole. Nothing is made smaller.
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

// Copy makes a copy whose holes are those of the original. It fails if there is such a file.
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
	// No file system that shares blocks.
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for hole := int64(0); ; {
		data, err := src.Seek(hole, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole to the end
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
