package engine

import (
	"net"
	"time"
)

// Listen returns a listener in the engine's network, for a server in this process that only the plugin and containers with the
// host's network can reach. The address must be a literal one: "127.0.0.1:0". The listener is closed when the test ends.
// PowerOff makes it unreachable.
func (e *Engine) Listen(address string) net.Listener {
	e.t.Helper()
	listener, err := e.namespaces.Listen(address)
	if err != nil {
		e.t.Fatalf("engine: listening on %s: %v", address, err)
	}
	e.t.Cleanup(func() { listener.Close() }) //nolint:errcheck // the test may have closed it
	return listener
}

// Dial connects to a server in the engine's network. The address must be a literal one.
func (e *Engine) Dial(address string) (net.Conn, error) {
	return e.namespaces.Dial(address, 10*time.Second)
}
