package namespace

import (
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Listen returns a listener in the set's network, for a server in this process that only programs in the set can reach. The
// address must be a literal one: "127.0.0.1:0".
func (s *Set) Listen(address string) (net.Listener, error) {
	return inNetwork(s, func() (net.Listener, error) { return net.Listen("tcp", address) })
}

// Dial connects to a server in the set's network. The address must be a literal one.
func (s *Set) Dial(address string, timeout time.Duration) (net.Conn, error) {
	return inNetwork(s, func() (net.Conn, error) { return net.DialTimeout("tcp", address, timeout) })
}

// inNetwork makes a socket in the set's network. The socket stays there, whichever thread uses it.
func inNetwork[T any](s *Set, socket func() (T, error)) (T, error) {
	type result struct {
		socket T
		err    error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var r result
		if r.err = s.setns(unix.CLONE_NEWNET); r.err == nil {
			r.socket, r.err = socket()
		}
		made <- r
	}()
	r := <-made
	return r.socket, r.err
}
