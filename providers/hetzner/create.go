package hetzner

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// sizes are those of the API reference ("Create a Volume"), which calls them GB.
var sizes = providers.Sizes{Cloud: "Hetzner Cloud", Least: 10, Most: 10240}

// create makes a volume with all its labels, and waits for it. If several nodes create one name at once, Hetzner refuses all but one.
func (p *Provider) create(ctx context.Context, spec providers.Spec, gib int64, _ int) (*volume, error) {
	zone := spec.Zone
	if zone == "" {
		node, err := p.Node(ctx)
		if err != nil {
			return nil, err
		}
		zone = node.Zone
	}
	request, asked := fmt.Sprintf("the request to create volume %q in location %s", spec.Name, zone), time.Now()
	all := p.labelsFor(nil, spec)
	in := schema.VolumeCreateRequest{Name: p.nameOf(spec.Name), Size: int(max(sizes.Least, gib)), Location: &schema.IDOrName{Name: zone}, Labels: &all}
	made, err := ask(ctx, p, request, http.MethodPost, "/volumes", in, func(a *volumeAnswer) bool { return a.Volume.ID != 0 })
	switch {
	case errors.Is(err, providers.ErrNotFound): // it can be about nothing else
		return nil, fmt.Errorf("%w: there is no such location: %s", providers.ErrInvalid, err.Error())
	case err != nil:
		return nil, err
	}
	if made.Action != nil {
		if err := p.await(ctx, fmt.Sprintf("create volume %d", made.Volume.ID), made.Action); err != nil {
			return nil, err
		}
		made.Volume.Status = volumeAvailable
	}
	p.saw(&made.Volume, asked)
	return &made.Volume, nil
}

// await waits until an action has ended, as it may have already.
func (p *Provider) await(ctx context.Context, change string, a *schema.Action) error {
	retry := pause.Backoff{Most: 2 * time.Second}
	for id, asked := a.ID, false; ; asked = true {
		switch a.Status {
		case actionSuccess:
			return nil
		case actionError:
			return p.failed(change, a)
		case actionRunning:
		default:
			return p.client.Foreign(ctx, "the request to "+change)
		}
		if asked {
			if err := retry.Wait(ctx); err != nil {
				return fmt.Errorf("it is not finished to %s: %w", change, err)
			}
		}
		var err error
		if a, err = p.action(ctx, id); err != nil {
			return err
		}
	}
}

// action asks for the state of an action.
func (p *Provider) action(ctx context.Context, id int64) (*schema.Action, error) {
	answer, err := ask(ctx, p, "the question for action "+text(id), http.MethodGet, "/actions/"+text(id), nil, func(a *schema.ActionGetResponse) bool { return a.Action.ID == id })
	switch {
	case errors.Is(err, providers.ErrNotFound): // Hetzner keeps actions for long, but not for ever
		return &schema.Action{ID: id, Status: actionSuccess}, nil
	case err != nil:
		return nil, err
	}
	return &answer.Action, nil
}

// taken explains why Hetzner refuses the name of a new volume.
func (p *Provider) taken(ctx context.Context, name string, refusal error) error {
	all, err := p.list(ctx, "name", p.nameOf(name))
	switch {
	case err != nil:
		return err
	case len(all) == 0:
		return fmt.Errorf("%w: a volume named %q was there and is gone at the same moment", providers.ErrBusy, name)
	}
	if p.IsOurs(p.show(all[0])) {
		return fmt.Errorf("%w: %q is the name of volume %d by now", providers.ErrInvalid, name, all[0].ID)
	}
	return fmt.Errorf("%w: it is volume %d, which is not blockvol's, or whose labels have been changed: rename it, or adopt it by -o volume-id=%d", refusal, all[0].ID, all[0].ID)
}
