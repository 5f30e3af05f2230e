package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// afford is nil if the file system can hold size bytes more besides everything that is promised already: each image
// can be written in full, whatever is sparse or shared with a snapshot now. The caller holds the lock.
func (p *Provider) afford(size int64) error {
	if p.overcommit {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return fmt.Errorf("cannot look at the file system of %s: %w", p.dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	reserve := min(int64(st.Blocks)*st.Bsize/100, 1<<30) // for the file system's own growth
	promised, err := p.promised()
	if err != nil {
		return err
	}
	if size <= free-promised-reserve {
		return nil
	}
	return fmt.Errorf("%w: it needs %s, and of %s free in %s, %s are promised to volumes and %s kept in reserve: "+
		"delete volumes, enlarge the file system, or set LOCAL_OVERCOMMIT=true",
		providers.ErrNoSpace, bytesize(size), bytesize(free), p.dir, bytesize(promised), bytesize(reserve))
}

// promised returns how many bytes the images can still take from the file system.
func (p *Provider) promised() (int64, error) {
	mayShare := p.hasSnapshots()
	names, err := p.disks.entries()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, name := range names {
		if ext := filepath.Ext(name); ext != ready && ext != making {
			continue
		}
		rest, err := unwritten(filepath.Join(p.dir, "disks", name), mayShare)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		sum += rest
	}
	if !mayShare {
		return sum, nil
	}
	// A snapshot is never written to once it is there, so only those being made count.
	if names, err = p.snaps.entries(); err != nil {
		return 0, err
	}
	for _, name := range names {
		id, isMaking := strings.CutSuffix(name, making)
		if !isMaking {
			continue
		}
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

// unwritten returns how many bytes an image can still take: what is not allocated, or shared so that writing to it
// allocates.
func unwritten(file string, mayShare bool) (int64, error) {
	info, err := os.Lstat(file)
	if err != nil {
		return 0, err
	}
	own := allocated(info)
	if mayShare && own > 0 {
		f, err := os.Open(file)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		n, err := shared(f)
		if err != nil {
			return 0, fmt.Errorf("cannot tell what %s shares with snapshots: %w", file, err)
		}
		own -= n
	}
	return max(0, info.Size()-max(0, own)), nil
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
