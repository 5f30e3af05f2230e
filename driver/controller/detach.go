package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// DetachTimeout is the longest that a detach is watched before it is left to the next reconciliation.
const DetachTimeout = 2 * time.Minute

// ErrDetachTimeout is the error for a cloud that has accepted a detach and not carried it out in time.
var ErrDetachTimeout = volume.Fail(volume.Busy, fmt.Sprintf("the cloud has not detached the disk within %s", DetachTimeout), "")

// Detach has the cloud detach the disk from the node, and returns once the cloud has accepted the request. The caller has made
// sure that the node's kernel holds no file system on it. A disk that the node does not hold, or that does not exist, is
// success.
func (c *Controller) Detach(ctx context.Context, id string, node providers.Node) error {
	retry := newBackoff()
	for begun := time.Now(); ; {
		err := c.cloud.detach(ctx, id, node.ID, false)
		c.AskedToDetach(id) // perhaps also if it failed
		if err == nil || errors.Is(err, providers.ErrNotFound) {
			return nil
		}
		if !errors.Is(err, providers.ErrBusy) || time.Since(begun) >= DetachTimeout {
			return err
		}
		if time.Since(begun) < firstCheck {
			retry.Shorten(mostUnderWay) // most likely an attach is ending
		}
		if cause := waitFor(ctx, retry.Next()); cause != nil {
			return fmt.Errorf("%w: %w", cause, err)
		}
	}
}

// CancelAttach has the cloud detach what a failed attach has left on the node.
func (c *Controller) CancelAttach(ctx context.Context, id string, node providers.Node) error {
	err := c.cloud.detach(ctx, id, node.ID, false)
	c.AskedToDetach(id)
	if errors.Is(err, providers.ErrBusy) {
		return nil
	}
	return err
}

// Departed notes that the device of a disk has left the node's kernel after Detach. Nothing but the detach takes it away.
func (c *Controller) Departed(name, id string, node providers.Node) {
	c.forgetDetach(id)
	c.catalog.leaving(name, id, node.ID)
}

// ConfirmDetach waits until the cloud itself says that the disk is being detached from the node, or is not attached to it: for
// a Detach of a disk whose device was not in the node's kernel, so that it cannot be seen to go.
func (c *Controller) ConfirmDetach(ctx context.Context, name, id string, node providers.Node) error {
	c.forgetDetach(id)
	retry := newBackoff()
	for {
		asked := c.catalog.now()
		vol, err := c.cloud.find(ctx, name)
		switch {
		case errors.Is(err, providers.ErrNotFound):
			return nil
		case err != nil:
			return err
		case vol.ID != id, !vol.HeldBy(node.ID), vol.Attachment.State == providers.Detaching:
			// To see "detaching" is enough, and polling for more would cost the cloud something for each of its seconds:
			// it has accepted the request, and no byte can come from here any more. The next holder's Attach waits for
			// the cloud; should the cloud change its mind, the next search for strays finds the disk attached.
			c.catalog.learn(asked, name, vol)
			return nil
		}
		// Most likely the answer is of a time before the request.
		if err := waitFor(ctx, retry.Next()); err != nil {
			return err
		}
	}
}

// asked is when the cloud was last asked to detach a disk from this node: by this life of the plugin, and by the one before.
type asked struct{ now, before time.Time }

func (a asked) last() time.Time {
	if a.before.After(a.now) {
		return a.before
	}
	return a.now
}

// AskedToDetach notes that the cloud may just have been asked to detach the disk from this node, so that for providers.MaxStale no
// answer says whether the disk is still attached.
func (c *Controller) AskedToDetach(id string) {
	c.noteDetach(id, func(a *asked) { a.now = time.Now() })
}

// MayHaveAskedToDetach notes that the life before may have asked for that last of all. Its request may still be under way:
// that the device goes, by a request of this life, does not say that no other will be carried out.
func (c *Controller) MayHaveAskedToDetach(id string) {
	c.noteDetach(id, func(a *asked) { a.before = time.Now() })
}

func (c *Controller) forgetDetach(id string) {
	c.noteDetach(id, func(a *asked) { a.now = time.Time{} })
}

func (c *Controller) noteDetach(id string, change func(*asked)) {
	c.slots.forget()
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.detaching[id]
	change(&a)
	c.detaching[id] = a
	maps.DeleteFunc(c.detaching, func(_ string, a asked) bool { return time.Since(a.last()) >= providers.MaxStale })
}

// detachingFor is for how long no answer will say whether the disk is still attached to this node.
func (c *Controller) detachingFor(id string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, providers.MaxStale-time.Since(c.detaching[id].last()))
}
