package driver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
)

const (
	// yieldSoon is how long an answer waits for a release, so that a quick one is told at once.
	yieldSoon = time.Second
	// wantedFor is how long after its last question a node counts as waiting for a volume.
	wantedFor = time.Minute
)

// Yield answers another node that wants a volume: this node lets go of it if nothing here uses it. It returns what this node has of
// it, once that is not want.Known, or with ctx. Errors: this node is not the one that is asked.
func (d *Driver) Yield(ctx context.Context, want volume.Want) (volume.Holding, error) {
	if here, err := d.thisNode(ctx); err != nil {
		return volume.Holding{}, err
	} else if here.ID != want.To {
		return volume.Holding{}, fmt.Errorf("this is not node %s", want.To)
	}
	if d.known(want.Volume) == nil { // else names that strange nodes ask for would stay
		return d.holding(ctx, nil, want), nil
	}
	h := d.obtain(want.Volume)
	defer d.drop(h)
	h.askedFor(want.From)
	var tried *node.Entry // what the volume was when its release was refused: it is not tried again for that
	for first := want.Known == ""; ; first = false {
		if e := h.Entry(); e != nil && e.Volume == want.Disk && !e.Releasing && (first || len(e.Uses) == 0) && e != tried {
			if d.yield(ctx, h, want) {
				tried = e
			}
		}
		changes := h.willChange()
		holding := d.holding(ctx, h, want)
		if holding.State != want.Known {
			return holding, nil
		}
		select {
		case <-changes:
			continue
		case <-ctx.Done():
		case <-d.ctx.Done():
		}
		return d.holding(ctx, h, want), nil
	}
}

// yield releases the volume if nothing uses it and no job is at it. It returns soon, and the release goes on. It tells whether that
// was tried.
func (d *Driver) yield(ctx context.Context, h *handle, want volume.Want) bool {
	ended := make(chan struct{})
	var tried atomic.Bool
	d.tasks.Go(func() {
		defer close(ended)
		d.attempt(h.Name, volume.Releasing, func(h *handle) {
			tried.Store(true)
			if e := h.Entry(); e == nil || e.Volume != want.Disk {
				return // another disk has come to have the name
			}
			ctx, cancel := context.WithTimeout(d.ctx, releaseTimeout)
			defer cancel()
			err := d.releaseIfUnused(ctx, h)
			log := h.Log().WithField("node", want.From)
			switch {
			case err == nil:
				log.Info("The volume, which nothing used here, was released for another node that wants it")
			case errors.Is(err, volume.InUse):
				d.doubt(h, "another node asks for it", suspectedEvery)
				if h.isNewlyAsked() {
					log.WithError(err).Warn("Another node wants a volume that is in use here: two services may have the same volume")
				}
			default:
				log.WithError(err).Warn("The volume could not be released yet for another node that wants it")
			}
		})
	})
	select {
	case <-ended:
	case <-time.After(yieldSoon):
	case <-ctx.Done():
	}
	return tried.Load()
}

// holding is what this node has of a volume that another one wants. h is nil if this node has no part of it.
func (d *Driver) holding(ctx context.Context, h *handle, want volume.Want) volume.Holding {
	var e *node.Entry
	if h != nil {
		e = h.Entry() // once: a job may end meanwhile, and leave none
	}
	if e == nil || e.Volume != want.Disk {
		if d.node.HasDevice(ctx, want.Serial) {
			return volume.Holding{State: volume.HoldsStray}
		}
		return volume.Holding{State: volume.HoldsNothing}
	}
	here := h.report(e)
	switch {
	case e.Releasing && h.Mountpoint() == "":
		return volume.Holding{State: volume.HoldsLeaving, Message: here.Problem}
	case len(e.Uses) == 0:
		return volume.Holding{State: volume.HoldsBusy, Message: here.Message}
	}
	holding := volume.Holding{State: volume.HoldsInUse, Since: h.MountedSince()}
	if users := h.LastUsers(); len(users) > 0 {
		holding.By = users.String()
	}
	return holding
}
