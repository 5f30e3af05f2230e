package controller

import (
	"context"

	"github.com/blockvol/blockvol/providers"
)

// Examine has the provider check itself; nil if it cannot.
func (c *Controller) Examine(ctx context.Context) []providers.Finding {
	if examiner, can := c.cloud.provider.(providers.Examiner); can {
		return examiner.Examine(ctx)
	}
	return nil
}

// Survey asks the cloud itself for all volumes. Some that cannot be read do not hide the others: those are returned with an error that
// names the rest.
func (c *Controller) Survey(ctx context.Context) ([]*providers.Volume, error) {
	return c.cloud.list(ctx)
}

// Holder returns what the cloud says of a node that holds volumes, and what an operator can do to free them; it may be nothing.
func (c *Controller) Holder(ctx context.Context, node string) (state providers.NodeState, remedy string) {
	state, _ = c.nodeState(ctx, node)
	return state, c.howToFree(node, state)
}
