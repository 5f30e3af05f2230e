package linode

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/recent"
)

// Attach asks for the volume for as long as this Linode runs, see the package's comment. Linode takes one change of a Linode at a
// time: callers of this node wait for each other, and for what others do to it.
func (p *Provider) Attach(ctx context.Context, id string) error {
	node, err := p.Node(ctx)
	if err != nil {
		return err
	}
	n, self := number(id), number(node.ID)
	if !p.KnownOurs(id, recent.WhileFree) {
		v, asked, err := p.getOurs(ctx, n)
		if err != nil {
			return err
		}
		if err := p.standing(v, asked, node.ID, errAttached); !errors.Is(err, providers.ErrBusy) {
			return err
		}
	}
	return p.linode.Do(ctx, node.ID, func(ctx context.Context) error {
		err := p.attach(ctx, n, self)
		switch {
		case err == nil:
			p.going.Delete(n) // nothing is left of a detach
			p.holder.Took(id, node.ID)
			return nil
		case errors.Is(err, providers.ErrUnavailable), ctx.Err() != nil:
			p.holder.Took(id, node.ID) // perhaps: there was no answer
		case errors.Is(err, errAttached):
			v, asked, lookErr := p.getOurs(ctx, n)
			if lookErr != nil {
				return lookErr
			}
			return p.standing(v, asked, node.ID, err)
		case errors.Is(err, providers.ErrNotFound):
			if _, _, lookErr := p.getOurs(ctx, n); lookErr != nil {
				return lookErr
			}
			return fmt.Errorf("the token's account has volume %s and no Linode %s, which this node is: check LINODE_INSTANCE_ID and whose the token is", id, node.ID)
		}
		return err
	})
}

// standing is what it means for an attach to this node how a volume stands: nil if it is attached here, ErrBusy if it can be
// tried again.
func (p *Provider) standing(v *sdk.Volume, asked time.Time, self string, refusal error) error {
	held := p.attachmentOf(v, asked)
	if _, may := p.leaves(v.ID, held.Node, asked); may && held.Node == self {
		return fmt.Errorf("%w: volume %d is still being detached from this Linode, or may be", providers.ErrBusy, v.ID)
	}
	err := held.Refused(strconv.Itoa(v.ID), self, refusal)
	if err == nil {
		p.holder.Took(strconv.Itoa(v.ID), self)
	}
	return err
}

// attach asks Linode once.
func (p *Provider) attach(ctx context.Context, id, linode int) error {
	persist := false
	_, err := call(ctx, p, fmt.Sprintf("the request to attach volume %d", id), func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.AttachVolume(ctx, id, &sdk.VolumeAttachOptions{LinodeID: linode, PersistAcrossBoots: &persist})
	}, func(v *sdk.Volume) bool { return v.ID == id && v.LinodeID != nil && *v.LinodeID == linode })
	return err
}

// Detach asks for the volume to be detached, if that node is seen to hold it right before.
//
// The request does not say from which Linode. So there is a moment, between the look and the request's arrival, in which somebody
// else could detach the volume from that node and attach it to another, from which this takes it then. To keep it short the
// request is sent once and soon after the look, or not at all: what has to wait, since the Linode is busy or the account asks
// too much, looks again; and none is sent while one that Linode has taken is under way, see departure. The driver alone detaches
// from its own node, once at a time; so what remains takes two nodes that take over from a third within the same moment, or
// hands in the console.
//
// Linode has no force: its detach does not wait for the machine.
func (p *Provider) Detach(ctx context.Context, id, node string, _ bool) error {
	if !isID(id) {
		return ctx.Err() // what Linode cannot have, nobody holds
	}
	n := number(id)
	for retry := (pace.Backoff{Most: time.Second}); ; {
		var stale error
		err := p.linode.Do(ctx, node, func(ctx context.Context) error {
			err := p.detach(ctx, n, node)
			if stale = nil; errors.Is(err, errStale) {
				stale, err = err, nil // others need not wait for that
			}
			return err
		})
		if err != nil || stale == nil {
			return err
		}
		if over := retry.Wait(ctx); over != nil {
			return fmt.Errorf("%w: %w", stale, over)
		}
	}
}

// errStale is of a read that may show how the volume stood before it was attached.
var errStale = fmt.Errorf("%w: Linode does not show yet what was just attached", providers.ErrBusy)

func (p *Provider) detach(ctx context.Context, n int, node string) error {
	v, asked, err := p.getOurs(ctx, n)
	held := providers.Attachment{}
	switch {
	case err == nil:
		held = p.attachmentOf(v, asked)
	case !errors.Is(err, providers.ErrNotFound):
		return err
	}
	switch {
	case held.Node != node && !p.holder.Denies(strconv.Itoa(n), node, asked):
		return fmt.Errorf("%w: volume %d, Linode %s", errStale, n, node)
	case held.Node != node || held.State != providers.Attached:
		return nil
	}
	err = p.do(onceSoon(ctx), fmt.Sprintf("the request to detach volume %d from Linode %s", n, node), func(ctx context.Context) error {
		return p.api.DetachVolume(ctx, n)
	})
	switch {
	case err == nil:
		p.leave(n, departure{node, time.Now(), true})
	case errors.Is(err, errNotAttached), errors.Is(err, providers.ErrNotFound):
		return nil
	case errors.Is(err, providers.ErrUnavailable), ctx.Err() != nil:
		p.leave(n, departure{node, time.Now(), false})
	}
	return err
}

func (p *Provider) leave(volume int, d departure) {
	p.going.Store(volume, d)
	if d.taken {
		p.holder.Left(strconv.Itoa(volume))
	}
}

// leaving is how long a detach that was asked for is believed to be under way while the volume is shown attached. It takes
// seconds, as a rule; one that takes longer has failed, and can be asked for again.
const leaving = time.Minute

// lag is how old a read may be.
const lag = 10 * time.Second

// departure is a detach that was asked for.
type departure struct {
	node  string
	since time.Time
	taken bool // by Linode's word; otherwise there was no answer
}

// leaves tells whether the volume, which a read asked at that time shows on the node, is on its way from there, and whether it
// may be, since a request was not answered.
func (p *Provider) leaves(volume int, node string, asked time.Time) (does, may bool) {
	last, _ := p.going.Load(volume)
	d, going := last.(departure)
	switch {
	case !going:
		return false, false
	case node == d.node && time.Since(d.since) < leaving:
		return d.taken, true
	case asked.Sub(d.since) >= lag: // it has arrived
		p.going.CompareAndDelete(volume, d)
	}
	return false, false
}

// getOurs is GetOurs in Linode's words.
func (p *Provider) getOurs(ctx context.Context, id int) (*sdk.Volume, time.Time, error) {
	d, err := p.GetOurs(ctx, strconv.Itoa(id))
	return &d.Native, d.Asked, err
}

// soon is how long after a look at who holds a volume a detach may be sent.
const soon = time.Second

// permit is what lets a request go out, once.
type permit struct {
	until time.Time
	used  bool
}

type permitKey struct{}

// onceSoon lets the request that is made with the context go out once, and soon.
func onceSoon(ctx context.Context) context.Context {
	return context.WithValue(ctx, permitKey{}, &permit{until: time.Now().Add(soon)})
}

// errLookAgain is of a request that was not sent.
var errLookAgain = fmt.Errorf("%w: the request had to wait too long", providers.ErrBusy)

// permitted tells whether a request may be sent now: what needs a permit goes with one only.
func permitted(r *http.Request) error {
	if may, needed := r.Context().Value(permitKey{}).(*permit); needed {
		if may.used || time.Now().After(may.until) {
			return errLookAgain
		}
		may.used = true
	}
	return nil
}
