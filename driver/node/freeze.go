package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/mount"
)

// thawTimeout is how long a file system that was left frozen may take to thaw.
const thawTimeout = 5 * time.Second

// ErrNotFrozen is the error of Frozen if it has not called do.
var ErrNotFrozen = errors.New("the volume's file system cannot be frozen")

// Frozen calls do while the volume's file system is frozen, see mount.Host.Freeze: a copy of the disk that begins meanwhile is complete.
// Whoever writes to the volume waits, for the limit at most, and never longer than mount.MaxFreeze.
//
// held tells that the file system was frozen until do returned. If not, the limit was reached or something else has thawed it, and the
// copy is like one after a power failure. err is do's, or ErrNotFrozen and do was not called.
func (v *Volume) Frozen(ctx context.Context, limit time.Duration, do func(ctx context.Context) error) (held bool, err error) {
	thaw, err := v.freeze(ctx, limit)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrNotFrozen, err)
	}
	defer func() {
		switch err := thaw(); {
		case err == nil, errors.Is(err, mount.ErrThawed):
			held = err == nil
			v.thawed()
		default: // the next look at the volume tries again
			v.Log().WithError(err).Error("The file system of a volume could not be thawed: what writes to it waits")
		}
	}()
	return false, do(ctx)
}

// freeze freezes the volume's file system. The journal says so from before, since the kernel does not tell what is frozen, and does not
// thaw it when this process ends.
func (v *Volume) freeze(ctx context.Context, limit time.Duration) (thaw func() error, err error) {
	e := v.Entry()
	if e == nil {
		return nil, mount.ErrNotStaged
	}
	if e.Frozen {
		v.thawLeft(ctx)
		if e = v.Entry(); e.Frozen {
			return nil, fmt.Errorf("%w: an earlier freeze has not ended", mount.ErrBusy)
		}
	}
	dev, err := v.node.host.Find(ctx, e.Serial)
	if err != nil {
		return nil, err
	}
	if err := v.write(e.but(func(e *Entry) { e.Frozen = true })); err != nil {
		v.thawed()
		return nil, err
	}
	thaw, err = v.node.host.Freeze(ctx, dev, v.dir, limit)
	if err != nil && !errors.Is(err, mount.ErrFreezing) {
		v.thawed()
	}
	return thaw, err
}

// thawed notes that the volume's file system is not frozen any more.
func (v *Volume) thawed() { v.reduce(v.Entry().but(func(e *Entry) { e.Frozen = false })) }

// thawLeft thaws the volume's file system, which the journal says may be frozen: the process that froze it was killed, or the kernel
// was not done.
func (v *Volume) thawLeft(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, thawTimeout)
	defer cancel()
	dev, err := v.currentDevice(ctx)
	thawed := false
	if err == nil && dev != (mount.Device{}) {
		thawed, err = v.node.host.Thaw(ctx, dev, v.dir)
	}
	if err != nil {
		v.Log().WithError(err).Error("The file system of a volume may have been left frozen, and cannot be thawed: what writes to it waits")
		return
	}
	if thawed {
		v.Log().WithField("device", dev.Path).Warn("The file system of a volume was left frozen, and is thawed")
	}
	v.thawed()
}
