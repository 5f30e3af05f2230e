package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// comparison compares two trees.
type comparison struct {
	ctx      context.Context //nolint:containedctx // of one call
	progress func(Progress)
	done     Progress
	told     time.Time
	links    map[uint64]uint64 // by inode of the source: that of the copy, of files with several names
	back     map[uint64]uint64 // the other way round
	a, b     []byte            // buffers
}

const blockSize = 1 << 20

// compare reads both trees and returns in what they differ, if they do; with top, also in the attributes of their tops. Errors:
// ErrDiffers.
func compare(ctx context.Context, source, target string, size Size, top bool, progress func(Progress)) error {
	c := &comparison{
		ctx: ctx, progress: progress, done: Progress{Phase: Verifying, Total: size.Bytes},
		links: map[uint64]uint64{}, back: map[uint64]uint64{}, a: make([]byte, blockSize), b: make([]byte, blockSize),
	}
	c.tell()
	if err := c.entries(source, target, true); err != nil || !top {
		return err
	}
	return c.metadata(source, target)
}

func (c *comparison) tell() {
	if time.Since(c.told) > 500*time.Millisecond {
		c.told = time.Now()
		c.progress(c.done)
	}
}

func differ(path, what string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrDiffers, path, fmt.Sprintf(what, args...))
}

// entries compares what is in two directories. At the top of a target, lost+found is not part of the copy.
func (c *comparison) entries(source, target string, top bool) error {
	wanted, err := names(source)
	if err != nil {
		return err
	}
	there, err := names(target)
	if err != nil {
		return err
	}
	if top && !slices.Contains(wanted, lostAndFound) {
		there = slices.DeleteFunc(there, func(name string) bool { return name == lostAndFound })
	}
	if !slices.Equal(wanted, there) {
		return differ(source, "it has the entries %q, and the copy %q", some(wanted), some(there))
	}
	for _, name := range wanted {
		if err := c.entry(filepath.Join(source, name), filepath.Join(target, name)); err != nil {
			return err
		}
	}
	return nil
}

func some(names []string) []string { return names[:min(len(names), 20)] }

// entry compares an entry of a directory, with all that is below it.
func (c *comparison) entry(source, target string) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	var a, b unix.Stat_t
	if err := errors.Join(lstat(source, &a), lstat(target, &b)); err != nil {
		return err
	}
	if a.Mode&unix.S_IFMT != b.Mode&unix.S_IFMT {
		return differ(source, "it is another kind of file than its copy")
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := c.entries(source, target, false); err != nil {
			return err
		}
		return c.metadata(source, target)
	}
	if err := c.metadata(source, target); err != nil {
		return err
	}
	if linked, known := c.links[a.Ino]; known {
		if linked != b.Ino {
			return differ(source, "it is another name of a file, and its copy is not")
		}
		return nil
	}
	if linked, known := c.back[b.Ino]; known && linked != a.Ino {
		return differ(source, "its copy is another name of another file")
	}
	if a.Nlink > 1 || b.Nlink > 1 {
		c.links[a.Ino], c.back[b.Ino] = b.Ino, a.Ino
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if a.Size != b.Size {
			return differ(source, "it has %d bytes, and its copy %d", a.Size, b.Size)
		}
		err := c.contents(source, target, a.Size)
		c.done.Done = min(c.done.Done+a.Blocks*512, c.done.Total)
		c.tell()
		return err
	case unix.S_IFLNK:
		to, err := os.Readlink(source)
		if err != nil {
			return err
		}
		copied, err := os.Readlink(target)
		if err == nil && to != copied {
			err = differ(source, "it links to %q, and its copy to %q", to, copied)
		}
		return err
	case unix.S_IFBLK, unix.S_IFCHR:
		if a.Rdev != b.Rdev {
			return differ(source, "it is another device than its copy")
		}
	}
	return nil
}

func lstat(path string, st *unix.Stat_t) error {
	if err := unix.Lstat(path, st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return nil
}

// metadata compares owners, modes, times and attributes.
func (c *comparison) metadata(source, target string) error {
	var a, b unix.Stat_t
	if err := errors.Join(lstat(source, &a), lstat(target, &b)); err != nil {
		return err
	}
	switch {
	case a.Mode != b.Mode:
		return differ(source, "its mode is %o, and that of its copy %o", a.Mode, b.Mode)
	case a.Uid != b.Uid || a.Gid != b.Gid:
		return differ(source, "its owner is %d:%d, and that of its copy %d:%d", a.Uid, a.Gid, b.Uid, b.Gid)
	case a.Mtim.Sec != b.Mtim.Sec || a.Mtim.Nsec != b.Mtim.Nsec && b.Mtim.Nsec != 0: // small file systems of ext4 have whole seconds
		return differ(source, "it was last changed at %s, and its copy at %s", stamp(a.Mtim), stamp(b.Mtim))
	}
	has, err := attributes(source)
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	copied, err := attributes(target)
	if err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	if names := sameAttributes(has, copied); names != "" {
		return differ(source, "it has other extended attributes than its copy: %s", names)
	}
	return nil
}

func stamp(t unix.Timespec) string { return time.Unix(t.Unix()).UTC().Format(time.RFC3339Nano) }

// contents compares the bytes of two files of one size. Where both have a hole, there is nothing to read.
func (c *comparison) contents(source, target string, size int64) error {
	a, err := open(source)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := open(target)
	if err != nil {
		return err
	}
	defer b.Close()
	// What is read is what the device has, and not what the kernel remembers of the copy.
	if err := unix.Fadvise(int(b.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		data, err := nextData(a, at, size)
		if err != nil {
			return err
		}
		copied, err := nextData(b, at, size)
		if err != nil {
			return err
		}
		if at = min(data, copied); at >= size {
			break
		}
		n := min(size-at, blockSize)
		if err := errors.Join(readAt(a, c.a[:n], at), readAt(b, c.b[:n], at)); err != nil {
			return err
		}
		if !bytes.Equal(c.a[:n], c.b[:n]) {
			return differ(source, "its contents differ from those of its copy within a MiB of byte %d", at)
		}
		at += n
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		c.tell()
	}
	return nil
}

func open(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func readAt(f *os.File, buffer []byte, at int64) error {
	_, err := io.ReadFull(io.NewSectionReader(f, at, int64(len(buffer))), buffer)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", f.Name(), err)
	}
	return nil
}

// nextData returns where data begins at or after a byte, size if there is none.
func nextData(f *os.File, at, size int64) (int64, error) {
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL): // a file system that does not tell
		return at, nil
	}
	return next, err
}
