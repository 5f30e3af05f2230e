package digitalocean

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
)

// The actions that power a droplet off and on.
const (
	actionPowerOff = "power_off"
	actionPowerOn  = "power_on"
)

// powerOff is "similar to cutting the power on a server" (API reference, "Initiate a Droplet Action"). DigitalOcean refuses it while
// any action of the droplet is under way, which may be this one.
func (p *Provider) powerOff(ctx context.Context, node string) error {
	return p.power(ctx, node, actionPowerOff, p.api.DropletActions.PowerOff)
}

func (p *Provider) powerOn(ctx context.Context, node string) error {
	return p.power(ctx, node, actionPowerOn, p.api.DropletActions.PowerOn)
}

func (p *Provider) power(ctx context.Context, node, kind string, send func(context.Context, int) (*godo.Action, *godo.Response, error)) error {
	droplet, err := strconv.Atoi(node)
	if err != nil {
		return err
	}
	action, _, err := send(ctx, droplet)
	err = found(p.explain(ctx, "the request to "+map[string]string{actionPowerOff: "power off", actionPowerOn: "power on"}[kind]+" droplet "+node, err, action != nil && action.ID != 0))
	if errors.Is(err, providers.ErrBusy) && p.underWay(ctx, droplet, kind) {
		return nil
	}
	return err
}

// underWay reports whether an action of that kind is shown as under way, among the latest of the droplet.
func (p *Provider) underWay(ctx context.Context, droplet int, kind string) bool {
	actions, _, err := p.api.Droplets.Actions(ctx, droplet, &godo.ListOptions{Page: 1, PerPage: 10})
	return err == nil && slices.ContainsFunc(actions, func(a godo.Action) bool {
		return a.Type == kind && a.Status == godo.ActionInProgress && a.ResourceID == droplet
	})
}
