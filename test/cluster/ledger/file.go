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

// File is a ledger open for writing. It is for one goroutine.
type File struct {
	f      *os.File
	sync   func(*os.File) error
	state  Summary
	buffer []byte
	failed error
}

// Open opens a ledger, makes it if there is none, reads all of it, and cuts off what a crash left of its last record. What
// it has read is on the disk, not only in memory.
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
	// After a write that failed, a page may be clean and yet on no disk. The process that wrote it may be gone with all it
	// knew. So write what is dirty, forget the rest, and read the disk.
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

// State is what the ledger holds; Torn is what Open cut off.
func (l *File) State() Summary { return l.state }

// Append writes the next record, of random bytes. It is durable when Append returns. After an error nothing is known of
// the file any more: all further calls fail, and nothing is tried again.
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

// Close closes the file, which has nothing left to write.
func (l *File) Close() error { return l.f.Close() }

// datasync is not File.Sync, which tries again when it was interrupted.
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
