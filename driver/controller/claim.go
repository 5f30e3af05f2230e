package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// What is added to a claim that is none any more, since it was carried through.
const (
	wasOff    = " off"
	restarted = " off restarted" // and the node was started again
)

// claimOf takes a claim apart: which node is powered off, and by which. Both are empty if it is none any more.
func claimOf(value string) (holder, by string) {
	if fields := strings.Fields(value); len(fields) == 4 {
		return fields[0], fields[1]
	}
	return "", ""
}

// FenceWords say what a claim tells that was carried through; nothing of another.
func FenceWords(value string) string {
	fields := strings.Fields(value)
	if len(fields) < 5 {
		return ""
	}
	words := fmt.Sprintf("node %s, by node %s at %s", fields[0], fields[1], fields[3])
	if strings.HasSuffix(value, restarted) {
		words += ", and started again"
	}
	return words
}

// makeClaim records with the cloud that this node is about to have the holder powered off. It returns why it does not, or nothing.
func (a *attach) makeClaim(ctx context.Context, vol *providers.Volume) string {
	holder, f, me := vol.Attachment.Node, &a.holder.fence, a.claim.Node.ID
	if why := a.witnessesObject(ctx, holder, claimAfter); why != "" {
		a.withdraw(ctx, vol)
		return why
	}
	theirs := vol.Record[volume.KeyFence]
	if of, by := claimOf(theirs); of == holder && by != me && a.fences.isFresh(theirs) {
		return fmt.Sprintf("node %s is about to do that", by)
	}
	if why := a.aboutToBeFenced(ctx, vol); why != "" {
		return why
	}
	claim := fmt.Sprintf("%s %s %s %s", holder, me, rand.Text()[:8], time.Now().UTC().Format(time.RFC3339))
	f.claim = claim // also if the answer is lost
	if err := a.cloud.mark(ctx, vol.ID, volume.KeyFence, claim); err != nil {
		a.withdraw(ctx, vol)
		return fmt.Sprintf("that this is about to be done cannot be recorded with the cloud: %s", err)
	}
	f.claimed = time.Now()
	if f.first.IsZero() {
		f.first = f.claimed
	}
	return ""
}

// withdraw takes the claim back, also when ctx has ended.
func (a *attach) withdraw(ctx context.Context, vol *providers.Volume) {
	if a.holder.fence.claim == "" {
		return
	}
	a.holder.fence.claim, a.holder.fence.first = "", time.Time{}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forceTimeout)
	defer cancel()
	if err := a.cloud.mark(ctx, vol.ID, volume.KeyFence, ""); err != nil {
		a.log.WithError(err).WithField("volume", vol.Name).Warn("That a node is not powered off after all could not be recorded with the cloud: for some minutes it cannot have others powered off")
	}
}

// aboutToBeFenced returns which other node is about to have this one powered off, in words, or nothing.
func (a *attach) aboutToBeFenced(ctx context.Context, vol *providers.Volume) string {
	me := a.claim.Node.ID
	mine, err := a.cloud.listHeld(ctx, me)
	if err != nil {
		return fmt.Sprintf("whether another node is about to have this one powered off cannot be told: %s", err)
	}
	for _, v := range mine {
		claim := v.Record[volume.KeyFence]
		of, by := claimOf(claim)
		if of != me || by == me || !a.fences.isFresh(claim) {
			continue
		}
		if by < me {
			a.withdraw(ctx, vol)
		}
		return fmt.Sprintf("node %s is about to have this node powered off", by)
	}
	return ""
}

// record writes what has become of a claim, unless another one has been made since.
func (c *Controller) record(ctx context.Context, name, claim, became string) {
	vol, err := c.Find(ctx, name)
	if err == nil && strings.TrimSuffix(vol.Record[volume.KeyFence], wasOff) == claim {
		err = c.Mark(ctx, vol, volume.KeyFence, claim+became)
	}
	if err != nil && ctx.Err() == nil {
		c.log.WithError(err).WithField("volume", name).Warn("That a node was powered off could not be recorded with the cloud")
	}
}
