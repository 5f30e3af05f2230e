package mount

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl passes a pointer to arg, whose memory layout is the kernel's.
func ioctl[T any](f *os.File, req uintptr, arg *T) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

func ioctlUint64(f *os.File, req uintptr) (v uint64, err error) {
	err = ioctl(f, req, &v)
	return v, err
}
