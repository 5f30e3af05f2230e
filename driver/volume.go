package driver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/mount"
)

// volume is what this node knows of one volume while it has something of it.
//
// The gate is held by whoever changes the volume: a call, or background work that outlives its call. Fields marked
// "gate" belong to its holder. The others are read by calls that must not wait, and are guarded by mu.
type volume struct {
	name string
	dir  string // its directory under the published one
	gate chan struct{}
	refs int // calls and work that use this object; guarded by Driver.mu
	// reserved is the id of the disk for which an entry is being written; guarded by Driver.mu.
	reserved string

	usedSince  time.Time // gate: since when a mount ID uses it
	idleUntil  time.Time // gate: when it is released if nobody has come to use it
	staleSince time.Time // gate: since when no container's mount backs its mount IDs
	activity   string    // gate: what the device had done when it was last looked at
	// gate: when the cloud may last have been asked to take the disk from this node, unless its device was seen to go since.
	detachedAt time.Time
	fitted     int64 // gate: the size of the device, in bytes, when its file system was last seen to fill it, or could not be made to

	mu       sync.Mutex
	entry    *entry       // its journal entry; nil if this node has nothing of it
	device   mount.Device // zero until seen
	path     string       // where it is mounted; empty if it is not
	doing    string       // what holds the gate, for people: "being attached"
	advice   string       // what the operator can do about it
	kept     error        // why its last release is not finished, for people
	refusal  string       // why the cloud has last refused it; it is tried again
	since    time.Time    // since when
	attempts int          // finished attempts to bring it up
	failed   error        // how the last of them ended
	waiting  int          // callers that wait for the gate
	wantedAt time.Time    // when the last of them came or went
}

func newVolume(name string) *volume {
	return &volume{name: name, dir: dirOf(name), gate: make(chan struct{}, 1)}
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// dirOf maps a volume's name to a directory name, one to one: plain names stand for themselves, all others for their hash
// behind a character that no plain name begins with.
func dirOf(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "_" + hex.EncodeToString(sum[:])
}

// obtain returns the volume's object, made if need be; drop gives it back.
func (d *Driver) obtain(name string) *volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.volumes[name]
	if v == nil {
		v = newVolume(name)
		d.volumes[name] = v
	}
	v.refs++
	return v
}

func (d *Driver) drop(v *volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.refs--
	if v.refs == 0 && v.journaled() == nil {
		delete(d.volumes, v.name)
	}
}

// known returns the volume if this node has something of it, without waiting.
func (d *Driver) known(name string) *volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.volumes[name]
}

// enter takes the volume's gate. If ctx ends first the error says what holds it.
func (d *Driver) enter(ctx context.Context, name, doing string) (*volume, error) {
	v := d.obtain(name)
	v.want(+1)
	defer v.want(-1)
	select {
	case v.gate <- struct{}{}:
		v.step(doing)
		return v, nil
	case <-ctx.Done():
		defer d.drop(v)
		return nil, v.unfinished(ctx)
	}
}

// tryEnter takes the gate if it is free, and returns nil if it is not.
func (d *Driver) tryEnter(name, doing string) *volume {
	v := d.obtain(name)
	select {
	case v.gate <- struct{}{}:
		v.step(doing)
		return v
	default:
		d.drop(v)
		return nil
	}
}

// leave gives the gate back.
func (d *Driver) leave(v *volume) {
	v.step("")
	<-v.gate
	d.drop(v)
}

// leaveUnused gives the gate back, and sees to it that a volume that nobody uses is released.
func (d *Driver) leaveUnused(v *volume) {
	if e := v.journaled(); e != nil && len(e.IDs) == 0 {
		d.releaseIn(v, linger)
	}
	d.leave(v)
}

// releaseIn releases the volume after so long, unless somebody comes back for it.
func (d *Driver) releaseIn(v *volume, wait time.Duration) {
	v.idleUntil = time.Now().Add(wait)
	d.tasks.Go(func() {
		if pause(d.ctx, wait) != nil {
			return
		}
		d.lookAfter(v.name)
	})
}

// state says what is being done with the volume, and what the operator can do about it.
func (v *volume) state() (doing, advice string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current(), v.advice
}

// current is what is being done with the volume, behind what stands in its way. The caller holds mu.
func (v *volume) current() string {
	if v.refusal == "" {
		return v.doing
	}
	return v.refusal + ": " + v.doing
}

// errUnfinished marks the answer to a caller whose time ran out while work goes on.
var errUnfinished = errors.New("not ready within the time that Docker gives")

func (v *volume) unfinished(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	doing, advice := v.current(), v.advice
	if doing == "" {
		doing, v.since = "busy with another call", time.Now()
	}
	return fmt.Errorf("%s (%s so far): volume %q is %w; the work goes on, try again%s (%w)",
		doing, time.Since(v.since).Round(time.Second), v.name, errUnfinished, advice, ctx.Err())
}

// background runs work that holds v's gate. While the caller waits it behaves like a plain call, and the caller still
// holds the gate afterwards. If ctx ends first, owns is false: the work goes on, gives the gate back at its end and, if
// nobody uses the volume then, leaves it to be released.
func (d *Driver) background(ctx context.Context, v *volume, work func(context.Context) error) (owns bool, err error) {
	done := make(chan error)
	d.tasks.Go(func() {
		workCtx, cancel := context.WithTimeoutCause(d.ctx, workTimeout, errWorkTimeout)
		defer cancel()
		err := work(workCtx)
		select {
		case done <- err: // the caller is there, and holds the gate from here on
		case <-ctx.Done():
			if err != nil {
				d.volumeLog(v).WithError(err).Warn("Work that its caller did not wait for has failed")
			}
			d.leaveUnused(v)
		}
	})
	select {
	case err := <-done:
		return true, err
	case <-ctx.Done():
		return false, v.unfinished(ctx)
	}
}

var (
	errWorkTimeout = fmt.Errorf("given up after %s", workTimeout)
	errUnwanted    = errors.New("nobody waits for the volume any more")
)

// whileWanted returns a context for work on behalf of a call: it ends when the call has, and nobody has waited for the
// volume for as long as a caller may take to come back.
func (v *volume) whileWanted(work, call context.Context) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancelCause(work)
	stop := context.AfterFunc(call, func() {
		v.want(0)
		v.waitUnwanted(work)
		cancel(errUnwanted)
	})
	return work, func() { stop(); cancel(nil) }
}

// want counts the callers that wait for the volume's gate, and notes when one came or went.
func (v *volume) want(change int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting += change
	v.wantedAt = time.Now()
}

// waitUnwanted returns when nobody has waited for the volume during the last linger, or with ctx.
func (v *volume) waitUnwanted(ctx context.Context) {
	for {
		v.mu.Lock()
		left := linger - time.Since(v.wantedAt)
		if v.waiting > 0 {
			left = linger
		}
		v.mu.Unlock()
		if left <= 0 || pause(ctx, left) != nil {
			return
		}
	}
}

func (d *Driver) volumeLog(v *volume) logrus.FieldLogger { return d.log.WithField("volume", v.name) }

// step says what is being done, for those who wait.
func (v *volume) step(doing string) { v.stuck(doing, "") }

// stuck says what is waited for, and what the operator can do about it.
func (v *volume) stuck(doing, advice string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.doing != doing {
		v.doing, v.advice, v.refusal, v.since = doing, advice, "", time.Now()
	}
}

// refused says why the cloud has refused what is being done, for now.
func (v *volume) refused(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refusal = err.Error()
}

func (v *volume) journaled() *entry {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.entry
}

func (v *volume) setEntry(e *entry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.entry = e
}

func (v *volume) setDevice(dev mount.Device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.device = dev
}

func (v *volume) setKept(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kept = why
}

func (v *volume) setPath(path string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.path = path
}

func (v *volume) mountpoint() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.path
}
