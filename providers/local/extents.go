package local

import (
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
