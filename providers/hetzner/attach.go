package hetzner

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/recent"
)

// protectBefore protects a volume from deletion before it is attached. If the volume is busy, the next attach does so.
func (p *Provider) protectBefore(ctx context.Context, id string) error {
	if protected, known := p.protected.Get(recent.WhileFree, number(id)); known && protected {
		return nil
	}
	if err := p.protect(ctx, id, true); !errors.Is(err, providers.ErrBusy) {
		return err
	}
	return nil
}

func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	request := fmt.Sprintf("the request to attach volume %s to server %s", id, node)
	a, err := p.change(ctx, request, id, "attach", schema.VolumeActionAttachVolumeRequest{Server: number(node)})
	switch {
	case errors.Is(err, errLimit):
		return "", fmt.Errorf("%w: %s: Hetzner Cloud attaches up to %d volumes to a server: run the service on another node", providers.ErrAttachLimit, err.Error(), maxVolumes)
	case err != nil:
		return "", err
	}
	return text(a.ID), nil
}

// wrongLocation explains a refusal if volume and server are in different locations.
func (p *Provider) wrongLocation(ctx context.Context, d managed.Disk[*volume], node string, refusal error) error {
	if !errors.Is(refusal, providers.ErrInvalid) {
		return nil
	}
	s, err := p.server(ctx, node)
	if err != nil || d.Zone == s.Location.Name {
		return nil //nolint:nilerr // then the refusal itself is the explanation
	}
	return fmt.Errorf("%w: volume %s is in location %s and server %s in %s, where it cannot be attached: run the service in location %s (%s)",
		providers.ErrInvalid, d.ID, d.Zone, node, s.Location.Name, d.Zone, refusal.Error())
}

// detach asks for the volume to be detached from the server, which a read right before has shown as its holder.
//
// Hetzner's request does not name the server: it detaches the volume from whichever server holds it when it is carried out. So it is
// not repeated if its answer was lost. One case remains: between the read and the request, somebody else detaches the volume and
// attaches it to another server. Both take seconds, in which Hetzner refuses this request, so the request would have to be delayed
// for so long. That cannot be undone, and is returned as an error. force changes nothing: Hetzner does not wait for the server.
func (p *Provider) detach(ctx context.Context, id, node string, _ bool) (string, error) {
	request := fmt.Sprintf("the request to detach volume %s from server %s", id, node)
	a, err := p.change(ctx, request, id, "detach", schema.VolumeActionDetachVolumeRequest{})
	if err != nil {
		return "", err
	}
	if server := serverOf(a); server != "" && server != node {
		return "", managed.Certain(fmt.Errorf("volume %s has been detached from server %s, which must have taken it from server %s in the moment of the request to detach it there: stop what uses it on server %s", id, server, node, server))
	}
	return text(a.ID), nil
}

// leaving is how long a detach is taken to be under way before its state is asked for.
const leaving = 20 * time.Second

// running is the action of a volume that is under way. There is no more than one, so the first page shows it.
func (p *Provider) running(ctx context.Context, id string) (*managed.Operation, error) {
	request := "the question what is being done with volume " + id
	query := url.Values{"per_page": {strconv.Itoa(perPage)}, "status": {actionRunning}}
	answer, err := ask(ctx, p, request, http.MethodGet, volumePath(id)+"/actions?"+query.Encode(), nil, func(page *actionPage) bool { return page.Meta.Pagination != nil })
	if err != nil || len(answer.Actions) == 0 {
		return nil, err
	}
	a := &answer.Actions[0]
	o := &managed.Operation{ID: text(a.ID), Node: serverOf(a), Attach: a.Command == "attach_volume"}
	if a.Command != "attach_volume" && a.Command != "detach_volume" {
		o.Other = p.client.Clean(a.Command)
	}
	return o, nil
}

func (p *Provider) operationState(ctx context.Context, _, id string) (managed.State, string, error) {
	a, err := p.action(ctx, number(id))
	switch {
	case err != nil:
		return "", "", err
	case a.Status == actionRunning:
		return managed.Running, "", nil
	case a.Status == actionError:
		return managed.Failed, p.failed("attach it", a).Error(), nil
	}
	return managed.Finished, "", nil
}

// serverOf returns the server that an action is about, empty if it shows none.
func serverOf(a *schema.Action) string {
	for _, r := range a.Resources {
		if r.Type == "server" {
			return text(r.ID)
		}
	}
	return ""
}
