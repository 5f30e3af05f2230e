package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// lock takes the directory's lock.
func (p *Provider) lock(ctx context.Context) (unlock func(), err error) {
	file := filepath.Join(p.dir, "lock")
	select {
	case p.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, busy(ctx, "the lock "+file)
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = flock(ctx, f)
	}
	if err != nil {
		<-p.gate
		return nil, err
	}
	return func() { f.Close(); <-p.gate }, nil
}

// flock takes an exclusive flock on f, or closes it. Errors: ErrBusy.
func flock(ctx context.Context, f *os.File) error {
	err := poll(ctx, "the lock "+f.Name(), func() (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		f.Close()
	}
	return err
}

// busy is the error of a wait that ctx has ended.
func busy(ctx context.Context, what string) error {
	return fmt.Errorf("gave up waiting for %s: %w: %w", what, providers.ErrBusy, ctx.Err())
}

// poll calls done until it returns true or an error, or ctx ends: the kernel offers no wait with a context for what is polled
// here. Errors: ErrBusy, those of done.
func poll(ctx context.Context, what string, done func() (bool, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if ctx.Err() != nil {
			return busy(ctx, what)
		}
		if ok, err := done(); ok || err != nil {
			return err
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}
