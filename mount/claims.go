package mount

import (
	"context"
	"fmt"
	"sync"
)

// claims are locks by key for calls that work on the same device or directory, so that mkfs, fsck and mount of one call do not meet
// those of another, nor a probe: the exclusive open that finds out whether a device is free. The key is the number of a device or the
// path of a directory.
type claims struct {
	mu  sync.Mutex
	all map[string]*claim
}

type claim struct {
	calls int           // that work, probe or wait; the last one deletes the claim
	work  chan struct{} // full while a call works
	probe sync.Mutex
}

func (c *claims) enter(key string) *claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[string]*claim{}
	}
	if c.all[key] == nil {
		c.all[key] = &claim{work: make(chan struct{}, 1)}
	}
	c.all[key].calls++
	return c.all[key]
}

func (c *claims) leave(key string, cl *claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl.calls--; cl.calls == 0 {
		delete(c.all, key)
	}
}

func (h *Host) claimDevice(ctx context.Context, dev Device) (release func(), err error) {
	return h.claims.forWork(ctx, dev.number().String(), "device "+dev.Path)
}

func (h *Host) claimDir(ctx context.Context, path string) (release func(), err error) {
	return h.claims.forWork(ctx, path, "directory "+path)
}

// claimVolume is claimDevice for work on what is staged at dir. It returns the path too.
func (h *Host) claimVolume(ctx context.Context, disk Device, dir string) (path string, release func(), err error) {
	if path, err = h.pathOf(dir); err == nil {
		release, err = h.claimDevice(ctx, disk)
	}
	return path, release, err
}

// forWork waits until no other call works on the key or probes it. name is for the error.
func (c *claims) forWork(ctx context.Context, key, name string) (release func(), err error) {
	cl := c.enter(key)
	select {
	case cl.work <- struct{}{}:
	case <-ctx.Done():
		c.leave(key, cl)
		return nil, fmt.Errorf("another call still works on %s: %w", name, context.Cause(ctx))
	}
	// Wait for a probe that has begun. Later ones are refused.
	cl.probe.Lock()
	cl.probe.Unlock() //nolint:staticcheck // a barrier
	return func() {
		<-cl.work
		c.leave(key, cl)
	}, nil
}

// forProbe waits for other probes. It returns false while a call works on the key.
func (c *claims) forProbe(key string) (release func(), free bool) {
	cl := c.enter(key)
	cl.probe.Lock()
	if len(cl.work) > 0 {
		cl.probe.Unlock()
		c.leave(key, cl)
		return nil, false
	}
	return func() {
		cl.probe.Unlock()
		c.leave(key, cl)
	}, true
}
