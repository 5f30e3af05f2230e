package mount

import (
	"bytes"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// uevents tells when block devices come, go or change, from the kernel's own broadcast, on one socket for all who wait.
// Without the socket it never tells anything, and who waits is left with looking.
type uevents struct {
	sock *os.File // nil without
	done chan struct{}

	mu      sync.Mutex
	changed chan struct{} // closed at the next event
}

// kernelGroup is the multicast group of the kernel's events; group 2 has udev's.
const kernelGroup = 1

func listenUevents() *uevents {
	u := &uevents{changed: make(chan struct{}), done: make(chan struct{})}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		close(u.done)
		return u
	}
	u.sock = os.NewFile(uintptr(fd), "uevents")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		u.sock.Close()
		u.sock = nil
		close(u.done)
		return u
	}
	go u.listen()
	return u
}

func (u *uevents) listen() {
	defer close(u.done)
	buf := make([]byte, 16<<10) // the kernel's are at most 2 KiB of variables and a path
	for {
		n, err := u.sock.Read(buf)
		switch {
		case err == nil && !isBlockEvent(buf[:n]):
		case err == nil, errors.Is(err, unix.ENOBUFS): // events were lost: everybody looks
			u.wake()
		default:
			return // closed
		}
	}
}

func (u *uevents) wake() {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.changed)
	u.changed = make(chan struct{})
}

// next returns a channel that is closed when a block device next changes.
func (u *uevents) next() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.changed
}

func (u *uevents) close() error {
	if u.sock == nil {
		return nil
	}
	err := u.sock.Close()
	<-u.done
	return err
}

// isBlockEvent tells whether a datagram is a kernel event about a block device: "add@/devices/…", then NUL-terminated
// variables (Linux, lib/kobject_uevent.c).
func isBlockEvent(b []byte) bool {
	head, vars, found := bytes.Cut(b, []byte{0})
	if !found || !bytes.Contains(head, []byte("@/")) {
		return false
	}
	for len(vars) > 0 {
		var v []byte
		v, vars, _ = bytes.Cut(vars, []byte{0})
		if string(v) == "SUBSYSTEM=block" {
			return true
		}
	}
	return false
}
