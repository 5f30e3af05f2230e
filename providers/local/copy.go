package local

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// fill copies source to an empty file that is at least as large. Holes stay holes.
func fill(ctx context.Context, to, source *os.File) error {
	if err := reflink(to, source); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	info, err := source.Stat()
	if err != nil {
		return err
	}
	const chunk = 16 * mib // after each, the context is checked
	for at := int64(0); at < info.Size(); {
		data, err := source.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // the rest is a hole
			return nil
		} else if err != nil {
			return err
		}
		hole, err := source.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = data; at < hole; at = min(at+chunk, hole) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := copyRange(to, source, at, min(chunk, hole-at)); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyRange(to, source *os.File, at, n int64) error {
	if _, err := source.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if _, err := to.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(to, source, n)
	return err
}

// reflink makes to share all blocks of source, as they are at one instant. Errors: errors.ErrUnsupported if the file system
// cannot do that.
func reflink(to, source *os.File) error {
	err := unix.IoctlFileClone(int(to.Fd()), int(source.Fd()))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV):
		return errors.ErrUnsupported
	}
	return err
}
