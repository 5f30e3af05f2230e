package linode

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers"
)

// Attach asks for the volume for as long as this Linode runs, see the package's comment. Linode takes one change of a Linode at a
// time: callers of this node wait for each other, and for what others do to it.
func (p *Provider) Attach(ctx context.Context, id string) error {
	n, err := numberOf(id)
	if err != nil {
		return err
	}
	node, err := p.Node(ctx)
	if err != nil {
		return err
	}
	self, err := numberOf(node.ID)
	if err != nil {
		return err
	}
	if !p.memory.knows(n) {
		v, asked, err := p.getOurs(ctx, n)
		if err != nil {
			return err
		}
		if held := p.attachmentOf(v, asked); held.State != providers.Detached && held.State != providers.Detaching {
			return p.heldFor(id, node.ID, held)
		}
	}
	return p.linode.Do(ctx, node.ID, func(ctx context.Context) error {
		err := p.attach(ctx, n, self)
		switch {
		case err == nil:
			p.memory.enter(n)
			p.memory.know(n)
			return nil
		case errors.Is(err, errAttached):
			v, asked, lookErr := p.getOurs(ctx, n)
			if lookErr != nil {
				return lookErr
			}
			held := p.attachmentOf(v, asked)
			if held.State == providers.Detached { // since
				return fmt.Errorf("%w: %w", providers.ErrBusy, err)
			}
			return p.heldFor(id, node.ID, held)
		case errors.Is(err, providers.ErrNotFound):
			if _, _, lookErr := p.getOurs(ctx, n); lookErr != nil {
				return lookErr
			}
			return fmt.Errorf("this node is no Linode %s of the token's account (%q): check LINODE_INSTANCE_ID and the token", node.ID, err)
		}
		return err
	})
}

// heldFor is what it means for this node that a volume is held so.
func (p *Provider) heldFor(id, self string, held providers.Attachment) error {
	switch {
	case held.Node != self:
		return &providers.HeldError{Volume: id, Node: held.Node}
	case held.State == providers.Detaching:
		return fmt.Errorf("%w: volume %s is still being detached from this Linode", providers.ErrBusy, id)
	}
	return nil
}

// attach asks Linode once.
func (p *Provider) attach(ctx context.Context, id, linode int) error {
	persist := false
	_, err := call(ctx, p, fmt.Sprintf("the request to attach volume %d", id), func(ctx context.Context) (*sdk.Volume, error) {
		v, err := p.api.AttachVolume(ctx, id, &sdk.VolumeAttachOptions{LinodeID: linode, PersistAcrossBoots: &persist})
		if err == nil && (v.ID != id || v.LinodeID == nil || *v.LinodeID != linode) {
			err = errNotLinodes
		}
		return v, err
	})
	return err
}

// detachWithin bounds the time between the look at who holds a volume and the end of the request that detaches it.
const detachWithin = 10 * time.Second

// Detach asks for the volume to be detached, if that node is seen to hold it right before.
//
// The request does not say from which Linode, so there is a moment, of the milliseconds between the two requests as a rule and of
// detachWithin if they hang, in which the volume could be detached from that node by somebody else and attached to another, from
// which this takes it then. The driver is the only one to detach from its own node, and does so once at a time; so this takes
// two nodes that take a volume over from a third at the same moment, or hands in the console. For the same reason the request is
// never repeated without another look, and not sent again while one that Linode has taken is under way. Linode has no force: its
// detach never waits for the machine.
func (p *Provider) Detach(ctx context.Context, id, node string, _ bool) error {
	n, err := numberOf(id)
	if err != nil {
		return ctx.Err() // what Linode cannot have, nobody holds
	}
	return p.linode.Do(ctx, node, func(ctx context.Context) error {
		v, asked, err := p.getOurs(ctx, n)
		if errors.Is(err, providers.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		if held := p.attachmentOf(v, asked); held.Node != node || held.State != providers.Attached {
			return nil
		}
		within, cancel := context.WithDeadline(ctx, asked.Add(detachWithin))
		defer cancel()
		_, err = call(within, p, fmt.Sprintf("the request to detach volume %d from Linode %s", n, node), func(ctx context.Context) (struct{}, error) {
			return struct{}{}, p.api.DetachVolume(ctx, n)
		})
		switch {
		case err == nil:
			p.memory.leave(n, strconv.Itoa(*v.LinodeID))
		case errors.Is(err, errNotAttached), errors.Is(err, providers.ErrNotFound):
			return nil
		case within.Err() != nil && ctx.Err() == nil && !errors.Is(err, providers.ErrBusy):
			return fmt.Errorf("%w: Linode has not answered the request to detach volume %d from Linode %s within %s", providers.ErrUnavailable, n, node, detachWithin)
		}
		return err
	})
}
