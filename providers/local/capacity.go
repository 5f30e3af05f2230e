package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// ledger is what was left to promise when the space was last measured, less what was promised since. The file space.json has
// it, so that a create need not look at every image. It only ever errs towards too little: what it would refuse is measured
// first. So whoever promises writes it before the image is made, and whoever gives back writes it after.
//
// The one exception is space that volumes gave back (discard) and other programs took since it was measured. As with images
// that somebody put there or took away by hand, the next measurement finds that.
type ledger struct {
	Boot     string    `json:"boot"` // a crash of the machine can lose the last changes
	Measured time.Time `json:"measured"`
	Free     int64     `json:"free"`     // bytes free in the file system when it was measured
	Headroom int64     `json:"headroom"` // bytes of them that could still be promised
}

// measureEvery is how long a ledger counts.
const measureEvery = time.Hour

// left returns how many bytes can still be promised, if so many are free. Less free space than was measured is either a volume's
// that was written to, which leaves as much to promise as before, or another program's, which does not: the latter is assumed.
// More free space is a volume's that gave it back.
func (l *ledger) left(free int64) int64 {
	return l.Headroom - max(0, l.Free-free)
}

func (p *Provider) ledgerFile() string { return filepath.Join(p.dir, "space.json") }

// readLedger returns nil if there is none that counts. The caller holds the lock.
func (p *Provider) readLedger() *ledger {
	var l ledger
	data, err := os.ReadFile(p.ledgerFile())
	if err != nil || json.Unmarshal(data, &l) != nil || l.Boot != p.boot {
		return nil
	}
	if age := time.Since(l.Measured); age < 0 || age >= measureEvery {
		return nil
	}
	return &l
}

// writeLedger overwrites the ledger, without waiting for the disk. What is torn does not count.
func (p *Provider) writeLedger(l *ledger) error {
	if err := p.disks.step("write", p.ledgerFile()); err != nil {
		return err
	}
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(p.ledgerFile(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%-255s\n", data) // always as long, so that nothing of the former is left
	return errors.Join(err, f.Close())
}

// promise sets size bytes aside for an image, or refuses if the file system cannot hold them besides everything that is promised
// already: each image can be written in full, whatever is sparse or shared with a snapshot now. The caller holds the lock.
func (p *Provider) promise(size int64) error {
	l := p.readLedger()
	if !p.overcommit {
		var st unix.Statfs_t
		if err := unix.Statfs(p.dir, &st); err != nil {
			return fmt.Errorf("cannot look at the file system of %s: %w", p.dir, err)
		}
		free := int64(st.Bavail) * st.Bsize
		if l == nil || l.left(free) < size {
			promised, err := p.promised()
			if err != nil {
				return err
			}
			reserve := min(int64(st.Blocks)*st.Bsize/100, 1<<30) // for the file system's own growth
			l = &ledger{Boot: p.boot, Measured: time.Now(), Free: free, Headroom: free - promised - reserve}
			if l.Headroom < size {
				return fmt.Errorf("%w: it needs %s, and of %s free in %s, %s are promised to volumes and %s kept in reserve: "+
					"delete volumes, enlarge the file system, or set LOCAL_OVERCOMMIT=true",
					providers.ErrNoSpace, bytesize(size), bytesize(free), p.dir, bytesize(promised), bytesize(reserve))
			}
		}
	}
	if l == nil {
		return nil
	}
	l.Headroom -= size
	return p.writeLedger(l)
}

// giveBack ends the promise to an image of size bytes that takes own bytes of the disk, until now or soon. The
// caller holds the lock.
func (p *Provider) giveBack(size, own int64) {
	if l := p.readLedger(); l != nil {
		l.Headroom += size
		l.Free += own
		_ = p.writeLedger(l) // the old one promises less
	}
}

// promised returns how many bytes the images can still take from the file system. The caller holds the lock, but an image can be
// finished meanwhile, which moves it: so those are looked at first that are being made, and none is missed.
func (p *Provider) promised() (int64, error) {
	mayShare := p.hasSnapshots()
	var sum int64
	counted := map[string]bool{}
	for _, ext := range []string{making, ready} {
		ids, err := p.disks.ids(ext)
		if err != nil {
			return 0, err
		}
		for _, id := range ids {
			size, own, err := space(p.disks.path(id, ext), mayShare)
			if errors.Is(err, fs.ErrNotExist) || counted[id] {
				continue
			} else if err != nil {
				return 0, err
			}
			counted[id] = true
			sum += size - own
		}
	}
	if !mayShare {
		return sum, nil
	}
	// A snapshot is never written to once it is there, so only those being made count.
	ids, err := p.snaps.ids(making)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		m, err := p.snaps.read(id)
		if err != nil {
			continue // not yet described, so the lock's next holder counts it
		}
		if info, err := os.Stat(p.snaps.path(id, making)); err == nil {
			sum += max(0, m.Needs-allocated(info))
		}
	}
	return sum, nil
}

// space returns the size of an image, and how many bytes of the disk it has for itself: they are not shared with a snapshot, so
// that writing them again allocates nothing.
func space(file string, mayShare bool) (size, own int64, err error) {
	info, err := os.Lstat(file)
	if err != nil {
		return 0, 0, err
	}
	own = allocated(info)
	if mayShare && own > 0 {
		f, err := os.Open(file)
		if err != nil {
			return 0, 0, err
		}
		defer f.Close()
		n, err := shared(f)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot tell what %s shares with snapshots: %w", file, err)
		}
		own -= n
	}
	return info.Size(), min(info.Size(), max(0, own)), nil
}

// allocated returns the bytes that a file takes on disk.
func allocated(info fs.FileInfo) int64 {
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// The kernel's struct fiemap with room for some extents; linux/fiemap.h.
type fiemap struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	extents                 [256]struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
}

const (
	fsIocFiemap  = 0xc020660b
	extentLast   = 0x1
	extentShared = 0x2000
)

// shared returns how many bytes of f other files share. Where the file system cannot tell, it has no shared extents
// or, like NFS, hides them; then all of f counts as shared.
func shared(f *os.File) (int64, error) {
	var sum int64
	m := fiemap{length: ^uint64(0), count: uint32(len(fiemap{}.extents))}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m)))
		switch {
		case errno == unix.EOPNOTSUPP || errno == unix.ENOTTY:
			info, err := f.Stat()
			if err != nil {
				return 0, err
			}
			return allocated(info), nil
		case errno != 0:
			return 0, errno
		case m.mapped == 0:
			return sum, nil
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&extentShared != 0 {
				sum += int64(e.length)
			}
			m.start = e.logical + e.length
			if e.flags&extentLast != 0 {
				return sum, nil
			}
		}
	}
}

// noSpace names a full file system for what it is.
func noSpace(err error) error {
	if errors.Is(err, providers.ErrNoSpace) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", providers.ErrNoSpace, err)
	}
	return err
}

// bytesize writes a number of bytes for people, without rounding it to nothing.
func bytesize(n int64) string {
	for _, unit := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {mib, "MiB"}, {1 << 10, "KiB"}} {
		switch {
		case n >= unit.size && n%unit.size == 0:
			return fmt.Sprintf("%d %s", n/unit.size, unit.name)
		case n >= unit.size:
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
