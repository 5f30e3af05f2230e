package engine

import (
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// Listen returns a listener on the engine's host, whose connections this process serves: a server that the plugin and
// containers with the host's network reach, and nobody else. The address is a literal one: "127.0.0.1:0". It ends with the
// test; after a PowerOff nobody reaches it any more.
func (e *Engine) Listen(address string) net.Listener {
	e.t.Helper()
	listener, err := e.space.listen(address)
	if err != nil {
		e.t.Fatalf("engine: listening on %s: %v", address, err)
	}
	e.t.Cleanup(func() { listener.Close() }) //nolint:errcheck // the test may have closed it
	return listener
}

// listen makes a socket in the network of the space. A socket stays where it was made, whoever uses it.
func (s *space) listen(address string) (net.Listener, error) {
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

func (s *space) enterNetwork() error {
	pidfd, err := unix.PidfdOpen(s.pid, 0)
	if err != nil {
		return fmt.Errorf("the engine's host is gone: %w", err)
	}
	defer unix.Close(pidfd)
	if err := unix.Setns(pidfd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the engine's network: %w", err)
	}
	return nil
}
