// Package tree moves the contents of a directory into an empty one on another file system, whole and verified.
//
// Owners, modes, times, extended attributes and ACLs, hard links, holes, symlinks and special files are copied by cp of GNU coreutils.
// Then both trees are read again and compared, the copy from its device. Nothing appears at the target's top before that.
//
// It can be killed at any instruction: until the copy is verified, the next call starts over, and afterwards it finishes. The source is
// mounted read-only while it is read, so nothing changes it, not even its access times.
package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a target holds while a copy is not finished, beside what it had before.
const (
	unverified = ".blockvol-import"   // the copy: it may be cut short
	verified   = ".blockvol-imported" // the same once it was compared: its entries are being moved to the top
)

// lostAndFound is what mkfs makes at the top of some file systems.
const lostAndFound = "lost+found"

// Errors of Copy.
var (
	ErrNotEmpty = errors.New("the target is not empty")
	ErrNoSpace  = errors.New("the target is too small")
	ErrDiffers  = errors.New("the copy differs from the source")
)

// Size is what a tree consists of.
type Size struct {
	Files int64 `json:"files"` // directories and others included
	Bytes int64 `json:"bytes"` // that files with several names take once, and holes not at all
}

// Progress is how far Copy is.
type Progress struct {
	Phase Phase `json:"phase"`
	Done  int64 `json:"done"` // bytes; while copying an estimate
	Total int64 `json:"total"`
}

// Phase is what Copy does.
type Phase string

// The phases of Copy.
const (
	Copying   Phase = "copying"
	Verifying Phase = "verifying"
)

// Copy makes target, which must have nothing but lost+found, the same as source. It tells its progress about twice a second. Errors:
// ErrNotEmpty, ErrNoSpace, ErrDiffers. It can be called again, also after success: a target that is the same already stays so.
func Copy(ctx context.Context, source, target string, progress func(Progress)) (Size, error) {
	size, err := measure(ctx, source)
	if err != nil {
		return Size{}, fmt.Errorf("%s cannot be read: %w", source, err)
	}
	found, err := prepare(source, target)
	if err != nil {
		return Size{}, err
	}
	if found == whole {
		err := compare(ctx, source, target, size, false, progress)
		if errors.Is(err, ErrDiffers) {
			return Size{}, fmt.Errorf("%w, and %s", ErrNotEmpty, err.Error())
		}
		if err != nil {
			return Size{}, err
		}
		// A call that was killed may have come so far without the attributes of the top.
		return size, errors.Join(likeDirectory(source, target), syncAll(target))
	}
	if found == nothing {
		staging := filepath.Join(target, unverified)
		if err := copyTo(ctx, source, staging, size, progress); err != nil {
			return Size{}, err
		}
		if err := compare(ctx, source, staging, size, true, progress); err != nil {
			return Size{}, err
		}
		if err := os.Rename(staging, filepath.Join(target, verified)); err != nil {
			return Size{}, err
		}
	}
	if err := finish(source, target); err != nil {
		return Size{}, err
	}
	if found == compared { // by an earlier call, which may be long ago
		err = compare(ctx, source, target, size, true, progress)
	}
	return size, err
}

// contents are what a target has when Copy begins.
type contents int

const (
	nothing  contents = iota
	compared          // an earlier call has copied and compared everything, and not moved all of it to the top
	whole             // what the source has, by the names at the top
)

// prepare makes sure that the target has no contents of others, and removes what a call left that was cut short.
func prepare(source, target string) (found contents, err error) {
	there, err := names(target)
	if err != nil {
		return nothing, err
	}
	wanted, err := names(source)
	if err != nil {
		return nothing, err
	}
	for _, name := range []string{unverified, verified} {
		if slices.Contains(wanted, name) {
			return nothing, fmt.Errorf("%w: %s has an entry %s, which stands for a copy that is not finished: rename it", ErrNotEmpty, source, name)
		}
	}
	if slices.Contains(there, verified) {
		moved, err := names(filepath.Join(target, verified))
		if err != nil {
			return nothing, err
		}
		if !sameNames(slices.Concat(there, moved), wanted) {
			return nothing, fmt.Errorf("%w: it has a copy that was not finished, of something else than %s as it is now", ErrNotEmpty, source)
		}
		return compared, nil
	}
	others := slices.DeleteFunc(slices.Clone(there), func(name string) bool { return name == unverified || name == lostAndFound })
	if len(others) > 0 && !slices.Contains(there, unverified) && sameNames(there, wanted) {
		return whole, nil
	}
	if len(others) > 0 {
		return nothing, fmt.Errorf("%w: it has %s", ErrNotEmpty, strings.Join(others[:min(len(others), 3)], ", "))
	}
	if slices.Contains(there, lostAndFound) && slices.Contains(wanted, lostAndFound) {
		return nothing, fmt.Errorf("%w: both it and the source have %s: rename that in the source", ErrNotEmpty, lostAndFound)
	}
	return nothing, os.RemoveAll(filepath.Join(target, unverified))
}

// sameNames tells whether two tops have the same entries, but for our own.
func sameNames(a, b []string) bool {
	ours := func(name string) bool { return name == verified || name == lostAndFound }
	a, b = slices.DeleteFunc(slices.Clone(a), ours), slices.DeleteFunc(slices.Clone(b), ours)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// copyTo copies the source to a directory that does not exist yet.
func copyTo(ctx context.Context, source, staging string, size Size, progress func(Progress)) error {
	target := filepath.Dir(staging)
	var before unix.Statfs_t
	if err := unix.Statfs(target, &before); err != nil {
		return err
	}
	free := int64(before.Bavail) * before.Bsize
	if size.Bytes > free {
		return fmt.Errorf("%w: the source takes %d bytes, and it has %d free", ErrNoSpace, size.Bytes, free)
	}
	if before.Files > 0 && size.Files > int64(before.Ffree) {
		return fmt.Errorf("%w: the source has %d files, and it has room for %d", ErrNoSpace, size.Files, before.Ffree)
	}
	ended := make(chan error, 1)
	go func() { ended <- cp(ctx, source, staging) }()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
			return syncAll(target)
		case <-tick.C:
			var now unix.Statfs_t
			if err := unix.Statfs(target, &now); err == nil {
				done := (int64(before.Bfree) - int64(now.Bfree)) * before.Bsize
				progress(Progress{Copying, min(max(0, done), size.Bytes), size.Bytes})
			}
		}
	}
}

// finish moves the verified copy to the top of the target, and gives that the attributes of the source.
func finish(source, target string) error {
	from := filepath.Join(target, verified)
	moving, err := names(from)
	if err != nil {
		return err
	}
	for _, name := range moving {
		if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(from, name), unix.AT_FDCWD, filepath.Join(target, name), unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("%s cannot be moved to its place: %w", name, err)
		}
	}
	if err := likeDirectory(source, target); err != nil {
		return fmt.Errorf("the attributes of %s cannot be copied: %w", source, err)
	}
	if err := syncAll(target); err != nil { // before what tells that there is something left to do is gone
		return err
	}
	if err := os.Remove(from); err != nil {
		return err
	}
	if err := likeDirectory(source, target); err != nil { // its time has changed
		return err
	}
	return syncAll(target)
}

// syncAll writes the file system that a directory is on to its device.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("the copy cannot be written to its device: %w", err)
	}
	return nil
}

// names are those of a directory's entries, sorted.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	all := make([]string, len(entries))
	for i, entry := range entries {
		all[i] = entry.Name()
	}
	return all, err
}
