package controller

import (
	"context"
	"slices"

	"github.com/blockvol/blockvol/providers"
)

// Examine has the provider check itself, if it can, and what TakeoverFence needs.
func (c *Controller) Examine(ctx context.Context) (found []providers.Finding) {
	if examiner, can := c.cloud.provider.(providers.Examiner); can {
		found = examiner.Examine(ctx)
	}
	broken := slices.ContainsFunc(found, func(f providers.Finding) bool { return f.Severity == providers.Problem })
	if c.takeover != TakeoverFence || broken { // what is wrong anyway would be the reason here, too
		return found
	}
	return append(found, c.examineFence(ctx))
}

func (c *Controller) examineFence(ctx context.Context) providers.Finding {
	const noFence, asStopped = "no-fence", "use TAKEOVER=stopped, which does the same"
	switch {
	case c.fencer == nil:
		return providers.Finding{
			Severity: providers.Warning, Check: "fence", Code: noFence,
			Message: "TAKEOVER=fence powers off no node: the provider cannot do that", Remedy: asStopped,
		}
	case c.witnesses == nil:
		return providers.Finding{
			Severity: providers.Warning, Check: "fence", Code: noFence,
			Message: "TAKEOVER=fence powers off no node: the nodes cannot ask each other, which takes a key", Remedy: "give the nodes a key, see docs/peers.md, or " + asStopped,
		}
	}
	return c.fencer.ExamineFence(ctx)
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
