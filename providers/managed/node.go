package managed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// NodeState tells what the cloud says about a node.
//
// A node that the cloud does not know is gone only if the cloud then shows the same credentials this node itself: to those of
// another account, project or region every node is missing.
func (p *Provider[V]) NodeState(ctx context.Context, node string) (providers.NodeState, error) {
	state, err := p.nodeState(ctx, node)
	switch c := &p.cloud; state.Life {
	case providers.Running:
		state.Remedy = fmt.Sprintf("%s %s %s in %s", c.StopWord, c.Machine, node, c.Name)
	case providers.Unclear:
		state.Remedy = "detach the volume in " + c.Name
	case providers.Stopped, providers.Gone: // nothing is in the way
	}
	return state, err
}

func (p *Provider[V]) nodeState(ctx context.Context, node string) (providers.NodeState, error) {
	c := &p.cloud
	if !c.IsNode(node) {
		return providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf("%q is no id of a %s of %s", sanitize.Clip(node), c.Machine, c.Name)}, ctx.Err()
	}
	asked := time.Now()
	status, err := c.Status(ctx, node)
	if err != nil && !errors.Is(err, providers.ErrNotFound) {
		return providers.NodeState{}, err
	}
	missing := p.memory.missing(node, err == nil, asked)
	switch {
	case err == nil:
		return providers.NodeState{
			Life: status.Life, Evidence: fmt.Sprintf("%s says that %s %s is %s", c.Name, c.Machine, node, status.Word), Addresses: status.Addresses,
		}, nil
	case !missing:
		return providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf("%s shows no %s %s, and is asked again", c.Name, c.Machine, node)}, nil
	}
	self, err := c.Self(ctx)
	if err != nil {
		return providers.NodeState{}, err
	}
	switch _, err := c.Status(ctx, self.ID); {
	case errors.Is(err, providers.ErrNotFound):
		return providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf("%s shows these credentials neither %s %s nor this node %s: they are of another account, project or region, or may not see them", c.Name, c.Machine, node, self.ID)}, nil
	case err != nil:
		return providers.NodeState{}, err
	}
	return providers.NodeState{Life: providers.Gone, Evidence: fmt.Sprintf("%s knows no %s %s", c.Name, c.Machine, node)}, nil
}
