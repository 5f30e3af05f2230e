package docker

import (
	"context"
	"errors"
	"time"

	"github.com/blockvol/blockvol/driver"
)

// openingTimeout is how long after the start calls wait for volumes that are being opened.
const openingTimeout = 5 * time.Second

var errOpening = errors.New("blockvol has started and is not ready yet: its state directory or a device of this node does not answer; containers that run keep their volumes; see the state directory and the kernel's log, then try again")

// Opening stands in for Volumes that open makes, in the background: that may hang in the kernel, which must not keep an engine
// waiting. Calls wait for it a moment; after that they are answered as Broken does.
func Opening(open func() Volumes) Volumes {
	o := &opening{opened: make(chan struct{}), tooLong: make(chan struct{})}
	time.AfterFunc(openingTimeout, func() { close(o.tooLong) })
	go func() {
		o.volumes = open()
		close(o.opened)
	}()
	return o
}

type opening struct {
	opened, tooLong chan struct{}
	volumes         Volumes // once it is opened
}

func (o *opening) now(ctx context.Context) Volumes {
	select {
	case <-o.opened:
		return o.volumes
	case <-o.tooLong:
	case <-ctx.Done():
	}
	select {
	case <-o.opened:
		return o.volumes
	default:
		return Broken(errOpening)
	}
}

// Create waits for the volumes.
func (o *opening) Create(ctx context.Context, name string, options map[string]string) error {
	return o.now(ctx).Create(ctx, name, options)
}

// Remove waits for the volumes.
func (o *opening) Remove(ctx context.Context, name string) error { return o.now(ctx).Remove(ctx, name) }

// Mount waits for the volumes.
func (o *opening) Mount(ctx context.Context, name, id string) (string, error) {
	return o.now(ctx).Mount(ctx, name, id)
}

// Unmount waits for the volumes.
func (o *opening) Unmount(ctx context.Context, name, id string) error {
	return o.now(ctx).Unmount(ctx, name, id)
}

// Path waits for the volumes.
func (o *opening) Path(ctx context.Context, name string) (string, error) {
	return o.now(ctx).Path(ctx, name)
}

// Get waits for the volumes.
func (o *opening) Get(ctx context.Context, name string) (driver.Info, error) {
	return o.now(ctx).Get(ctx, name)
}

// List waits for the volumes.
func (o *opening) List(ctx context.Context) ([]driver.Info, error) { return o.now(ctx).List(ctx) }
