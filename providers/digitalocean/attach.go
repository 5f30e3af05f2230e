package digitalocean

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/recent"
)

// move is the last attach or detach of a volume that this process has asked for.
type move struct {
	node    string
	in      bool // attach
	action  int
	at      time.Time // when DigitalOcean had taken it
	shown   bool      // a read shows that it is over, or at least begun
	problem string    // why it failed
}

// unasked is how long a move is taken to be under way without a look at its action.
const unasked = 10 * time.Second

// moving returns what this process has asked for last, if it has not found that to be over.
func (p *Provider) moving(volume string) (move, bool) {
	last, _ := p.moves.Load(volume)
	m, is := last.(move)
	return m, is
}

// attachmentOf tells which node holds the volume, by a read that was asked for at that time, or later. What that shows is
// complete but for actions that are under way, and of those this process knows its own.
func (p *Provider) attachmentOf(v godo.Volume, asked time.Time) providers.Attachment {
	shown := ""
	if len(v.DropletIDs) > 0 {
		shown = strconv.Itoa(v.DropletIDs[0])
	}
	m, is := p.moving(v.ID)
	if is && !asked.Before(m.at) {
		switch before := m; {
		case m.in && shown == m.node, !m.in && shown == "":
			m.shown = true
			p.moves.CompareAndSwap(v.ID, before, m)
		case shown != "" && shown != m.node: // another's since
			p.moves.CompareAndDelete(v.ID, m)
			is = false
		}
	}
	is = is && !m.shown
	switch {
	case is && m.in && m.problem != "":
		return providers.Attachment{Node: m.node, State: providers.AttachFailed, Problem: m.problem}
	case is && m.in:
		return providers.Attachment{Node: m.node, State: providers.Attaching}
	case is && shown == m.node:
		return providers.Attachment{Node: m.node, State: providers.Detaching}
	case shown != "":
		return providers.Attachment{Node: shown, State: providers.Attached}
	}
	return providers.Attachment{}
}

// settle is describe for a volume whose move may be over without a read that shows it: after a while the action is asked for.
func (p *Provider) settle(ctx context.Context, v godo.Volume, asked time.Time) (*providers.Volume, error) {
	d := p.describe(v, asked)
	m, is := p.moving(v.ID)
	if !is || m.shown || m.problem != "" || time.Since(m.at) < unasked {
		return d, nil
	}
	action, err := p.action(ctx, v.ID, m)
	switch {
	case err != nil && !isMissing(err):
		return nil, err
	case err == nil && action.Status == godo.ActionInProgress:
		return d, nil
	case err == nil && action.Status != godo.ActionCompleted && m.in:
		p.ended(v.ID, m, fmt.Sprintf("DigitalOcean says that its action %d to attach the volume is %q", m.action, p.http.Clean(action.Status)))
		return p.describe(v, asked), nil
	}
	p.ended(v.ID, m, "")
	asked = time.Now()
	if v, err = p.lookupOurs(ctx, v.ID); err != nil {
		return nil, err
	}
	return p.describe(v, asked), nil
}

// ended notes that a move is over, or why it failed, unless another has been made since.
func (p *Provider) ended(volume string, m move, problem string) {
	if problem == "" {
		p.moves.CompareAndDelete(volume, m)
		return
	}
	failed := m
	failed.problem = problem
	p.moves.CompareAndSwap(volume, m, failed)
}

// Attach asks once, and again only while the droplet or the volume is busy with something else.
func (p *Provider) Attach(ctx context.Context, id string) error {
	here, err := p.here(ctx)
	if err != nil {
		return err
	}
	if err := p.ensureOurs(ctx, id, recent.WhileFree); err != nil {
		return err
	}
	node := strconv.Itoa(here.droplet)
	return p.line.Do(ctx, node, func(ctx context.Context) error {
		action, _, err := p.api.StorageActions.Attach(ctx, id, here.droplet)
		err = p.explain(ctx, fmt.Sprintf("the request to attach volume %s to droplet %s", id, node), err, action != nil && action.ID != 0)
		switch {
		case err == nil:
			p.moves.Store(id, move{node: node, in: true, action: action.ID, at: time.Now()})
			p.left.See(id, time.Now(), "")
			return nil
		case errors.Is(err, errAttached):
			return p.standing(ctx, id, node, err)
		case isMissing(err):
			if _, gone := p.lookup(ctx, id); gone != nil {
				return gone
			}
			return fmt.Errorf("DigitalOcean knows volume %s, but no droplet %s of this account, which this node is: check %s, %s and whose the token is: %w", id, node, settingMetadata, settingDroplet, err)
		case errors.Is(err, providers.ErrBusy):
			if m, is := p.moving(id); is && m.in && m.node == node && m.problem == "" && time.Since(m.at) < unasked {
				return nil // with this very attach
			}
			return err
		case errors.Is(err, providers.ErrUnavailable), errors.Is(err, providers.ErrAttachLimit), ctx.Err() != nil:
			return err
		}
		// The words of a refusal are not documented: whatever they are, the volume's holder may be the reason.
		if why := p.standing(ctx, id, node, err); why == nil || errors.Is(why, providers.ErrHeld) || errors.Is(why, providers.ErrNotFound) {
			return why
		}
		return err
	})
}

// Detach names the droplet, so that DigitalOcean itself leaves alone what another has by now. It knows no force: a detach from
// a droplet that is off or gone does not ask the droplet.
func (p *Provider) Detach(ctx context.Context, id, node string, _ bool) error {
	err := p.ensureOurs(ctx, id, recent.WhileHeld)
	if errors.Is(err, providers.ErrNotFound) || err == nil && !dropletID.MatchString(node) {
		return nil
	} else if err != nil {
		return err
	}
	droplet, err := strconv.Atoi(node)
	if err != nil {
		return err
	}
	return p.line.Do(ctx, node, func(ctx context.Context) error {
		action, _, err := p.api.StorageActions.DetachByDropletID(ctx, id, droplet)
		err = p.explain(ctx, fmt.Sprintf("the request to detach volume %s from droplet %s", id, node), err, action != nil && action.ID != 0)
		switch {
		case err == nil:
			p.moves.Store(id, move{node: node, action: action.ID, at: time.Now()})
			p.left.See(id, time.Now(), node)
			return nil
		case errors.Is(err, errNotAttached), isMissing(err):
			return p.released(ctx, id, node, err)
		case errors.Is(err, providers.ErrBusy):
			if m, is := p.moving(id); is && !m.in && !m.shown && m.node == node && time.Since(m.at) < unasked {
				return nil // with this very detach
			}
			return err
		case errors.Is(err, providers.ErrUnavailable), ctx.Err() != nil:
			return err
		}
		if p.released(ctx, id, node, err) == nil { // whatever the words of the refusal are
			return nil
		}
		return err
	})
}

// released makes sure of a refusal by which the node does not hold the volume. A volume does not show an attach that is under
// way.
func (p *Provider) released(ctx context.Context, id, node string, refusal error) error {
	if arriving, err := p.arriving(ctx, id, node); err != nil {
		return err
	} else if arriving {
		return fmt.Errorf("%w: volume %s is still being attached to droplet %s: %w", providers.ErrBusy, id, node, refusal)
	}
	v, err := p.lookup(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	for _, held := range v.DropletIDs {
		if strconv.Itoa(held) == node {
			return fmt.Errorf("%w: it shows volume %s on droplet %s all the same: %w", providers.ErrBusy, id, node, refusal)
		}
	}
	if m, is := p.moving(id); is && m.node == node {
		p.ended(id, m, "")
	}
	return nil
}

// arriving tells whether an attach to the node that this process has asked for is under way. What has not been seen to be over is
// asked for.
func (p *Provider) arriving(ctx context.Context, id, node string) (bool, error) {
	m, is := p.moving(id)
	if !is || !m.in || m.node != node || m.shown || m.problem != "" {
		return false, nil
	}
	action, err := p.action(ctx, id, m)
	if isMissing(err) {
		return false, nil
	}
	return err == nil && action.Status == godo.ActionInProgress, err
}

// action asks for the action of a move.
func (p *Provider) action(ctx context.Context, volume string, m move) (*godo.Action, error) {
	action, _, err := p.api.StorageActions.Get(ctx, volume, m.action)
	return action, p.explain(ctx, fmt.Sprintf("the request for action %d of volume %s", m.action, volume), err, action != nil && action.ID == m.action)
}
