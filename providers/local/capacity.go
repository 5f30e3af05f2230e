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

// ledger is how much space can still be promised to images, kept in space.json, so that Create need not look at every image.
// It is never too high, and before it would refuse anything, the space is measured again. To keep it so, a promise is written
// before the image is created, and a promise is given back after the image is deleted.
//
// One case is left to the next measurement: volumes give back space (discard), and other programs take it. It also finds
// images that somebody moved by hand.
type ledger struct {
	Boot     string    `json:"boot"` // a crash of the machine can lose the latest changes
	Measured time.Time `json:"measured"`
	Free     int64     `json:"free"`     // bytes free in the file system when it was measured
	Headroom int64     `json:"headroom"` // bytes of them that can still be promised
}

// measureEvery is how long a measurement is used.
const measureEvery = time.Hour

// left returns how many bytes can still be promised when so many are free. Less free space than at the measurement was either
// taken by volumes, which leaves as much to promise as before, or by other programs, which does not: it assumes the latter.
// More free space was given back by volumes.
func (l *ledger) left(free int64) int64 {
	return l.Headroom - max(0, l.Free-free)
}

func (p *Provider) ledgerFile() string { return filepath.Join(p.dir, "space.json") }

// readLedger returns nil if there is no ledger that can be trusted. The caller holds the lock.
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

// writeLedger overwrites the ledger without waiting for the disk. A torn one is not trusted.
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
	_, err = fmt.Fprintf(f, "%-255s\n", data) // always of the same length, so nothing of the old one is left
	return errors.Join(err, f.Close())
}

// promise sets size bytes aside for an image. It refuses if not all images could then be written in full, also where they are
// now sparse or share blocks with a snapshot. The caller holds the lock. Errors: ErrNoSpace.
func (p *Provider) promise(size int64) error {
	l := p.readLedger()
	if !p.overcommit {
		free, err := p.freeSpace()
		if err != nil {
			return err
		}
		if l == nil || l.left(free) < size {
			if l, err = p.measure(size); err != nil {
				return err
			}
		}
	}
	if l == nil {
		return nil
	}
	l.Headroom -= size
	return p.writeLedger(l)
}

// measure makes a ledger that has size bytes left. Errors: ErrNoSpace.
func (p *Provider) measure(size int64) (*ledger, error) {
	before, err := p.freeSpace()
	if err != nil {
		return nil, err
	}
	promised, err := p.promised()
	if err != nil {
		return nil, err
	}
	after, err := p.freeSpace()
	if err != nil {
		return nil, err
	}
	free := min(before, after) // volumes may be written to meanwhile
	l := &ledger{Boot: p.boot, Measured: time.Now(), Free: free, Headroom: free - promised}
	if l.Headroom < size {
		return nil, fmt.Errorf("%w: it needs %s, but of %s free in %s, %s are promised to volumes: "+
			"delete volumes, enlarge the file system, or set LOCAL_OVERCOMMIT=true",
			providers.ErrNoSpace, bytesize(size), bytesize(free), p.dir, bytesize(promised))
	}
	return l, nil
}

// freeSpace returns how many bytes are free, except for a reserve for the file system's own growth.
func (p *Provider) freeSpace() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return 0, fmt.Errorf("the free space of %s is unknown: %w", p.dir, err)
	}
	return int64(st.Bavail)*st.Bsize - min(int64(st.Blocks)*st.Bsize/100, 1<<30), nil
}

// giveBack ends the promise to an image of size bytes, of which own bytes of the disk become free now or soon. The caller holds
// the lock.
func (p *Provider) giveBack(size, own int64) {
	if l := p.readLedger(); l != nil {
		l.Headroom += size
		l.Free += own
		_ = p.writeLedger(l) // the old one is lower
	}
}

// promised returns how many bytes the images can still take from the disk. The caller holds the lock. An image can be completed
// meanwhile, which moves it, so the unfinished ones are read first.
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
	// A snapshot takes no more space once it is complete.
	ids, err := p.snaps.ids(making)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		m, err := p.snaps.read(id)
		info, gone := os.Stat(p.snaps.path(id, making))
		if err == nil && gone == nil {
			sum += max(0, m.Needs-allocated(info))
		}
	}
	return sum, nil
}

// space returns the size of an image, and how many bytes of the disk are its own: not shared with a snapshot, so that
// overwriting them takes no further space.
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
			return 0, 0, fmt.Errorf("what %s shares with snapshots is unknown: %w", file, err)
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
