package driver

import (
	"context"
	"errors"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
)

// reconcileLoop sets right, at start and from time to time, what nobody told the plugin about: containers that died unseen,
// releases that were cut short, volumes left attached by a life whose journal is lost. It asks the kernel and the cloud,
// never Docker.
func (d *Driver) reconcileLoop() {
	var searched time.Time // when strays were last searched for
	for lookAfter := d.lookAfterStart; ; lookAfter = d.lookAfter {
		if age := time.Since(searched); age >= straysEvery || d.mayHaveStrays(d.ctx, age) {
			if begun := time.Now(); d.findStrays(d.ctx) {
				searched = begun
			}
		}
		for _, name := range d.held() {
			// Nobody waits for them: one that hangs in the kernel must not keep the others from their turn.
			d.tasks.Go(func() { lookAfter(name) })
		}
		before := time.Now()
		if pause.For(d.ctx, reconcileEvery) != nil {
			return
		}
		// Here, so that no Mount has to fail first. (And not sooner: an engine disables a plugin that ends at once.)
		err := d.node.Visible(d.ctx)
		if errors.Is(err, node.ErrNotVisible) {
			d.found("", volume.NotVisible)
		} else if err != nil {
			d.log.WithError(err).Warn("Whether the engine sees what is mounted cannot be told")
		}
		if now := time.Now(); wasStopped(reconcileEvery, now.Sub(before), now.Round(0).Sub(before.Round(0))) {
			d.log.Warn("This node has stood still: whether it still holds its disks is asked of the cloud")
			searched = time.Time{}
		}
	}
}

// lookAfter reconciles one volume, unless somebody is at work on it, and measures how full it is.
func (d *Driver) lookAfter(name string) {
	d.attempt(name, volume.Reconciling, func(h *handle) { d.reconcile(d.ctx, h) })
	if h := d.known(name); h != nil {
		h.Measure(d.ctx)
	}
}

// lookAfterStart looks after one volume soon, again and again, for the first half minute: an engine that starts after a crash
// starts its plugins, and then ends the containers that had outlived it, for which it sends no Unmount. Elsewhere their
// successors wait for the volume.
func (d *Driver) lookAfterStart(name string) {
	for wait := time.Second; wait < reconcileEvery; wait *= 2 {
		d.lookAfter(name)
		if pause.For(d.ctx, wait) != nil {
			return
		}
	}
}

// held returns the names of the volumes that this node may hold.
func (d *Driver) held() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name, h := range d.volumes {
		if h.Entry() != nil {
			names = append(names, name)
		}
	}
	return names
}

// reconcile compares what the journal says of one volume with what the kernel holds, and releases the volume if nobody uses
// it. The caller holds the gate.
func (d *Driver) reconcile(ctx context.Context, h *handle) {
	e := h.Entry()
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	d.protect(ctx, h)
	log := h.Log().WithField("id", e.Volume)
	usage, err := h.Usage(ctx, time.Now().Before(h.keptUntil))
	if err != nil {
		log.WithError(err).Warn("Whether the volume is in use cannot be told; it is left as it is")
		d.found(h.Name, volume.Undetermined)
		return
	}
	log.WithFields(logrus.Fields{"usage": usage, "users": h.LastUsers().String(), "activity": h.Activity()}).Debug("Volume looked at")
	if usage == node.Abandoned {
		d.found(h.Name, volume.Abandoned)
	}
	switch usage {
	case node.Used:
		h.keptUntil = time.Now().Add(idleTTL)
		h.GrowOnce(ctx)
	case node.Active:
		h.keptUntil = time.Now().Add(idleTTL)
	case node.Unused, node.Abandoned:
		if err := d.release(ctx, h); err != nil {
			log.WithError(err).Warn("The volume could not be released yet")
			d.found(h.Name, volume.Unreleased)
		}
	case node.Idle, node.Undecided:
	}
}

// found tells the observer what a look at the kernel and the cloud has shown of a volume.
func (d *Driver) found(name string, finding volume.Finding) {
	d.observer(volume.Found{Volume: name, Finding: finding})
}
