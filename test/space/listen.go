package space

import (
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Listen returns a listener in the network of the space, whose connections this process serves: a server that programs in
// the space reach, and nobody else. The address is a literal one: "127.0.0.1:0".
func (s *Space) Listen(address string) (net.Listener, error) {
	return inNetwork(s, func() (net.Listener, error) { return net.Listen("tcp", address) })
}

// Dial connects to a server that programs in the space reach. The address is a literal one.
func (s *Space) Dial(address string, timeout time.Duration) (net.Conn, error) {
	return inNetwork(s, func() (net.Conn, error) { return net.DialTimeout("tcp", address, timeout) })
}

// inNetwork makes a socket in the network of a space. It stays where it was made, whoever uses it.
func inNetwork[T any](s *Space, socket func() (T, error)) (T, error) {
	type result struct {
		socket T
		err    error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := s.enterNetwork(); err != nil {
			made <- result{err: err}
			return
		}
		socket, err := socket()
		made <- result{socket, err}
	}()
	r := <-made
	return r.socket, r.err
}

func (s *Space) enterNetwork() error {
	pidfd, err := unix.PidfdOpen(s.pid, 0)
	if err != nil {
		return fmt.Errorf("the space is gone: %w", err)
	}
	defer unix.Close(pidfd)
	if err := unix.Setns(pidfd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the space's network: %w", err)
	}
	return nil
}
