package digitalocean

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers/managed"
)

// unasked is how long an attach or a detach is taken to be under way before its action is read.
const unasked = 10 * time.Second

// attach asks once.
func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	droplet, err := strconv.Atoi(node)
	if err != nil {
		return "", err
	}
	action, _, err := p.api.StorageActions.Attach(ctx, id, droplet)
	return operationOf(action), found(p.explain(ctx, fmt.Sprintf("the request to attach volume %s to droplet %s", id, node), err, action != nil && action.ID != 0))
}

// detach names the droplet, so that DigitalOcean refuses it if another droplet holds the volume by now. There is no force: a detach
// from a droplet that is off or gone does not wait for the droplet.
func (p *Provider) detach(ctx context.Context, id, node string, _ bool) (string, error) {
	droplet, err := strconv.Atoi(node)
	if err != nil {
		return "", err
	}
	action, _, err := p.api.StorageActions.DetachByDropletID(ctx, id, droplet)
	return operationOf(action), found(p.explain(ctx, fmt.Sprintf("the request to detach volume %s from droplet %s", id, node), err, action != nil && action.ID != 0))
}

func operationOf(action *godo.Action) string {
	if action == nil {
		return ""
	}
	return strconv.Itoa(action.ID)
}

func (p *Provider) operationState(ctx context.Context, volume, operation string) (managed.State, string, error) {
	id, err := strconv.Atoi(operation)
	if err != nil {
		return "", "", err
	}
	action, err := p.action(ctx, volume, id)
	switch {
	case errors.Is(err, errMissing):
		return managed.Unknown, "", nil
	case err != nil:
		return "", "", err
	case action.Status == godo.ActionInProgress:
		return managed.Running, "", nil
	case action.Status != godo.ActionCompleted:
		return managed.Failed, fmt.Sprintf("DigitalOcean says that its action %d to attach the volume is %q", id, p.http.Clean(action.Status)), nil
	}
	return managed.Finished, "", nil
}

// action asks for an action of a volume.
func (p *Provider) action(ctx context.Context, volume string, id int) (*godo.Action, error) {
	action, _, err := p.api.StorageActions.Get(ctx, volume, id)
	return action, p.explain(ctx, fmt.Sprintf("the request for action %d of volume %s", id, volume), err, action != nil && action.ID == id)
}
