package engine

import "net"

// Listen returns a listener on the engine's host, whose connections this process serves: a server that the plugin and
// containers with the host's network reach, and nobody else. The address is a literal one: "127.0.0.1:0". It ends with the
// test; after a PowerOff nobody reaches it any more.
func (e *Engine) Listen(address string) net.Listener {
	e.t.Helper()
	listener, err := e.namespaces.Listen(address)
	if err != nil {
		e.t.Fatalf("engine: listening on %s: %v", address, err)
	}
	e.t.Cleanup(func() { listener.Close() }) //nolint:errcheck // the test may have closed it
	return listener
}
