package ledger

import (
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// File is a ledger open for writing. It is not safe for concurrent use.
type File struct {
	f      *os.File
	sync   func(*os.File) error
	state  Summary
	buffer []byte
	failed error
}

// Open opens or creates a ledger, reads all of it, and removes an incomplete last record. What it has read is on the disk, not
// only in the page cache.
func Open(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	l := &File{f: f, sync: datasync}
	if l.state, err = l.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

func (l *File) read() (Summary, error) {
	// After a failed write, a page can be clean without being on the disk, and the process that knew it may be gone. So sync,
	// drop the cache, and read from the disk.
	if err := l.f.Sync(); err != nil {
		return Summary{}, err
	}
	if err := unix.Fadvise(int(l.f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return Summary{}, os.NewSyscallError("fadvise", err)
	}
	s, length, err := verify(l.f)
	if err != nil {
		return s, err
	}
	if s.Torn > 0 {
		if err := l.f.Truncate(length); err != nil {
			return s, err
		}
		if err := l.f.Sync(); err != nil {
			return s, err
		}
	}
	return s, syncDirectory(filepath.Dir(l.f.Name()))
}

// State returns the ledger's contents. Torn is what Open has removed.
func (l *File) State() Summary { return l.state }

// Append writes the next record, with random contents, and syncs it. After an error the file's state is unknown: all further
// calls fail.
func (l *File) Append() error {
	if l.failed != nil {
		return l.failed
	}
	payload := make([]byte, minPayload+mathrand.IntN(maxPayload-minPayload+1))
	rand.Read(payload)
	var sum Sum
	l.buffer, sum = appendRecord(l.buffer[:0], l.state.Last+1, time.Now(), l.state.Sum, payload)
	if _, err := l.f.Write(l.buffer); err != nil {
		return l.fail(err)
	}
	if err := l.sync(l.f); err != nil {
		return l.fail(err)
	}
	l.state = Summary{Last: l.state.Last + 1, Sum: sum, Before: l.state.Sum}
	return nil
}

func (l *File) fail(err error) error {
	l.failed = fmt.Errorf("record %d: %w", l.state.Last+1, err)
	return l.failed
}

// Close closes the file. Everything has been synced.
func (l *File) Close() error { return l.f.Close() }

// datasync does not retry after an interruption, unlike File.Sync.
func datasync(f *os.File) error {
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd())))
}

func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
