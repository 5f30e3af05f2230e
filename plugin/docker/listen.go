package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Listen makes the socket, for the owner only, and its directory if that is missing. From then on engines can connect;
// their calls wait for Serve. A socket that a dead process left is replaced, one on which somebody listens is not.
func Listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the socket: %w", err)
	}
	if err := removeStale(ctx, socket); err != nil {
		return nil, err
	}
	// Not by chmod: between bind and chmod the socket would be open to whom the umask lets in.
	umask := unix.Umask(0o177)
	defer unix.Umask(umask)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on the socket: %w", err)
	}
	return l, nil
}

func removeStale(ctx context.Context, socket string) error {
	info, err := os.Lstat(socket)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot look at the socket: %w", err)
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is not a socket: remove it, or choose another path with --socket", socket)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err == nil {
		_ = conn.Close()
	}
	// Only a refusal proves that nobody listens: a busy listener gives other errors.
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("another process listens on %s: stop it, or choose another path with --socket", socket)
	}
	if err := os.Remove(socket); err != nil {
		return fmt.Errorf("cannot remove the socket that a dead process left: %w", err)
	}
	return nil
}
