package main

import (
	"context"
	"fmt"
	"net"
)

// notifyReady tells systemd that the socket is there, if systemd has started this process and named a socket for that: see
// sd_notify(3). Units that come after this one are then started.
func notifyReady(ctx context.Context, getenv func(string) string) error {
	socket := getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", socket)
	if err == nil {
		_, err = conn.Write([]byte("READY=1"))
		_ = conn.Close() // a datagram has been sent or not
	}
	if err != nil {
		return fmt.Errorf("systemd cannot be told that blockvol has started, and will stop it: %w; set Type=exec in the unit", err)
	}
	return nil
}
