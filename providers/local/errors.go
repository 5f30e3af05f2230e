package local

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

var (
	errDamaged = errors.New("damaged") // a file is not as this package wrote it; never treated as a missing volume
	errLost    = errors.New("the image is lost")
	errMaking  = errors.New("is being created")
)

// unavailable is ErrUnavailable without its words, which are about a cloud.
type unavailable struct{ error }

func (unavailable) Is(target error) bool { return target == providers.ErrUnavailable }

func (e unavailable) Unwrap() error { return e.error }

// later is errDamaged without its word: a later version of blockvol has written the file.
type later struct{ error }

func (later) Is(target error) bool { return target == errDamaged }

func (e later) Unwrap() error { return e.error }

// unreadable is the error if the directory for volumes cannot be read.
func unreadable(err error) error {
	return unavailable{fmt.Errorf("the directory for volumes cannot be read: is its file system mounted? %w", err)}
}

// noSpace makes the error of a full file system ErrNoSpace.
func noSpace(err error) error {
	if !errors.Is(err, providers.ErrNoSpace) && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return fmt.Errorf("%w: %w", providers.ErrNoSpace, err)
	}
	return err
}

func invalid(format string, a ...any) error {
	return fmt.Errorf("%w: %w", providers.ErrInvalid, fmt.Errorf(format, a...))
}

// inUse is ErrHeld for a device that no node has on record.
func inUse(id, device string) error {
	return fmt.Errorf("%w: %s is attached as /dev/%s, but not by blockvol: detach it with losetup -d", providers.ErrHeld, id, device)
}

// bytesize formats a number of bytes.
func bytesize(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	size := float64(n)
	for size >= 1024 {
		size /= 1024
		units = units[1:]
	}
	return fmt.Sprintf("%.4g %s", size, units[0])
}
