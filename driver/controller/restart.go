package controller

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

const (
	// emptyWithin is how long a node that is off stays so for others to take its volumes. Those that nobody wants do not keep it off.
	emptyWithin = time.Minute
	// startWithin bounds the time for which the cloud is asked to start a node again.
	startWithin = 15 * time.Minute
	// resumeFor is how old, by this node's clock, a power-off may be for the next life of this process to go on with it.
	resumeFor = time.Hour
)

// ResumeFences goes on with starting nodes again that this node had had powered off when its process ended: the volumes that it holds
// tell of them.
func (c *Controller) ResumeFences(ctx context.Context, here string, held []*providers.Volume) {
	if !c.reboot || c.fencer == nil || c.resumed.Swap(true) {
		return
	}
	for _, vol := range held {
		claim := strings.TrimSuffix(vol.Record[volume.KeyFence], wasOff)
		if of, by := claimOf(claim); by == here && of != here && vol.HeldBy(here) {
			at, err := time.Parse(time.RFC3339, strings.Fields(claim)[3])
			if err != nil || time.Since(at) > resumeFor { // who has it off since then wants it off
				continue
			}
			if state, _ := c.nodeState(ctx, of); state.Life == providers.Stopped {
				go c.startAgain(c.life, vol.Name, of, claim)
			}
		}
	}
}

// startAgain starts a node that was powered off, when its volumes are gone from it, and records that in the volume for which it was.
func (c *Controller) startAgain(ctx context.Context, name, holder, claim string) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	log := c.log.WithField("node", holder)
	if !c.fences.starting(holder) {
		return
	}
	defer c.fences.started(holder)
	var off time.Time // since when the cloud calls it so
	for retry := (pause.Backoff{Most: 5 * time.Second}); retry.Wait(ctx) == nil; {
		state, _ := c.nodeState(ctx, holder)
		switch {
		case state.Life == providers.Gone:
			return
		case state.Life == providers.Running && !off.IsZero(): // somebody else has seen to it
			c.record(ctx, name, claim, restarted)
			return
		case state.Life != providers.Stopped:
			continue
		case off.IsZero():
			off = time.Now()
		}
		held, err := c.cloud.listHeld(ctx, holder)
		if err != nil || len(held) > 0 && time.Since(off) < emptyWithin {
			continue
		}
		if slices.ContainsFunc(held, func(v *providers.Volume) bool { return v.Attachment.State == providers.Detaching }) {
			continue
		}
		err = c.fencer.PowerOn(ctx, holder)
		if errors.Is(err, providers.ErrNotFound) {
			return
		}
		if err != nil {
			log.WithError(err).Warn("The node that was powered off could not be started again yet")
			continue
		}
		if c.witnesses != nil {
			c.witnesses.Started(holder)
		}
		log.Warn("The node that was powered off is started again")
		c.record(ctx, name, claim, restarted)
		return
	}
	if c.life.Err() == nil {
		log.Error("The node that was powered off has not been started again: start it in the cloud")
	}
}
