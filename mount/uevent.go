package mount

import (
	"bytes"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// uevents receives the kernel's events about block devices that are added, removed or changed, on one socket for all waiting calls.
// If there is no socket, no event ever comes, and the calls poll.
type uevents struct {
	sock *os.File // nil if there is none
	done chan struct{}

	mu      sync.Mutex
	changed chan struct{} // closed at the next event
}

// kernelGroup is the multicast group of the kernel's events; udev's have group 2.
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
	buf := make([]byte, 16<<10) // an event has at most 2 KiB of variables and a path
	for {
		n, err := u.sock.Read(buf)
		switch {
		case err == nil && !isBlockEvent(buf[:n]):
		case err == nil, errors.Is(err, unix.ENOBUFS): // events were lost: all calls must check
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

// next returns a channel that is closed at the next event.
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

// isBlockEvent tells whether a datagram is an event of the kernel about a block device: "add@/devices/…", then variables that end
// with NUL (Linux, lib/kobject_uevent.c).
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
