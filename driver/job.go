package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
)

// job is work on one volume that no other job works on meanwhile.
type job struct {
	op    volume.Op
	phase volume.Phase // what others are told, until the work says more

	// work goes on when the caller has left. Its context is the driver's, bounded by limit, 0 for workTimeout.
	work  func(ctx context.Context, h *handle) error
	limit time.Duration
	// commit, if set, follows work that has succeeded while the caller still waits, and makes the answer. undo takes that back
	// if the caller has left before the answer.
	commit func(ctx context.Context, h *handle) (answer string, undo func(), err error)

	keep time.Duration // how long the volume is kept afterwards if nobody uses it; 0 for no longer than before

	// joins: the work brings the volume up, for all who wait for that. It ends when they have left and nobody has come back, and
	// if it fails that is the answer to all of them.
	joins  bool
	insist bool // the job is done though its caller has left before its turn

	called time.Time // set by do
}

// withSnapshot is the limit of work that may have to wait for a snapshot.
const withSnapshot = controller.SnapshotTimeout + workTimeout

var errUnwanted = errors.New("nobody waits for the volume any more")

// do does a job, when it is its turn. If ctx ends first the error says what is being done with the volume.
func (d *Driver) do(ctx context.Context, name string, j job) (string, error) {
	about := volume.Error{Op: j.op, Volume: name}
	if err := d.node.Serves(name); err != nil {
		return "", volume.At(err, about)
	}
	j.called = time.Now()
	h := d.obtain(name)
	ended := make(chan result) // unbuffered: what is sent was received
	d.tasks.Go(func() { d.run(ctx, h, j, ended) })
	var r result
	select {
	case r = <-ended:
	case <-ctx.Done():
		r.err = h.unfinished(ctx)
	}
	if e := h.Entry(); e != nil {
		about.ID = e.Volume
	}
	if id := d.nodeID.Load(); id != nil {
		about.Node = *id
	}
	err := volume.At(r.err, about)
	d.observer(volume.CallEnded{Volume: name, Op: j.op, Took: time.Since(j.called), Err: err})
	return r.answer, err
}

type result struct {
	answer string
	err    error
}

// run takes the volume's gate, does the job, and gives the gate back.
func (d *Driver) run(caller context.Context, h *handle, j job, ended chan<- result) {
	defer d.drop(h)
	before, _ := h.attempted()
	turn := caller
	if j.insist {
		turn = context.WithoutCancel(caller) // after Close too: what has the gate ends then
	}
	if !h.enter(turn, j) {
		return // the caller has been told
	}
	defer d.leave(h)
	var r result
	var undo func()
	if after, failure := h.attempted(); j.joins && after != before && failure != nil {
		r.err = failure
	} else {
		r.err = d.work(caller, h, j)
	}
	if r.err == nil && j.commit != nil {
		if caller.Err() != nil {
			return // nobody hears the answer
		}
		r.answer, undo, r.err = j.commit(caller, h)
	}
	r.err = d.stopping(r.err)
	select {
	case ended <- r:
	case <-caller.Done():
		if r.err != nil {
			h.Log().WithError(r.err).Warn("Work that its caller did not wait for has failed")
		}
		if undo != nil {
			undo()
		}
	}
}

func (d *Driver) work(caller context.Context, h *handle, j job) error {
	ctx, cancel := withLimit(d.ctx, cmp.Or(j.limit, workTimeout))
	defer cancel()
	if j.joins {
		var stop context.CancelFunc
		ctx, stop = h.whileWanted(ctx, caller)
		defer stop()
	}
	return j.work(ctx, h)
}

func withLimit(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("given up after %s", limit))
}

// answering is how long a job may hold the gate after its answer.
const answering = 100 * time.Millisecond

// attempt does work on a volume, unless a job is at it that is not about to end.
func (d *Driver) attempt(name string, phase volume.Phase, work func(h *handle)) {
	if d.node.Serves(name) != nil {
		return
	}
	h := d.obtain(name)
	defer d.drop(h)
	select {
	case h.gate <- struct{}{}:
	case <-time.After(answering):
		return
	}
	h.keep, h.called = 0, time.Now()
	h.Step(volume.Step{Phase: phase})
	defer d.leave(h)
	work(h)
}

// enter takes the volume's gate for a job.
func (h *handle) enter(ctx context.Context, j job) bool {
	if j.joins {
		h.want(+1)
		defer h.want(-1)
	}
	select {
	case h.gate <- struct{}{}:
		h.keep, h.called = j.keep, j.called
		h.Step(volume.Step{Phase: j.phase})
		return true
	case <-ctx.Done():
		return false
	}
}

// leave gives the gate back, and sees to it that a volume that nobody uses is released.
func (d *Driver) leave(h *handle) {
	if e := h.Entry(); h.keep > 0 && e != nil && len(e.Uses) == 0 {
		d.releaseAfter(h, h.keep)
	}
	h.Step(volume.Step{})
	<-h.gate
}

// releaseAfter releases the volume after so long, unless somebody comes back for it.
func (d *Driver) releaseAfter(h *handle, ttl time.Duration) {
	h.keptUntil = time.Now().Add(ttl)
	d.tasks.Go(func() {
		if pause.For(d.ctx, ttl) == nil {
			d.lookAfter(h.Name)
		}
	})
}

// obtain returns the volume's handle, made if need be; drop gives it back.
func (d *Driver) obtain(name string) *handle {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.volumes[name]
	if h == nil {
		h = newHandle(d.node.Volume(name), d.observer)
		d.volumes[name] = h
	}
	h.refs++
	return h
}

func (d *Driver) drop(h *handle) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h.refs--
	if h.refs == 0 && h.Entry() == nil {
		delete(d.volumes, h.Name)
	}
}

// known returns the volume if this node has something of it, without waiting.
func (d *Driver) known(name string) *handle {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.volumes[name]
}
