package space

import (
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// Listen returns a listener in the network of the space, whose connections this process serves: a server that programs in
// the space reach, and nobody else. The address is a literal one: "127.0.0.1:0". A socket stays where it was made, whoever
// uses it.
func (s *Space) Listen(address string) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := s.enterNetwork(); err != nil {
			made <- result{err: err}
			return
		}
		listener, err := net.Listen("tcp", address)
		made <- result{listener, err}
	}()
	r := <-made
	return r.listener, r.err
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
