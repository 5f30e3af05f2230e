package driver

import (
	"context"
	"fmt"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
)

// Hold brings the volume up on this node for an operator's command, which has it for itself until Drop, and returns its path. The ID
// is the command's. A command that has died without Drop, and of which no process has the volume mounted, does not keep it from the next.
// Errors: volume.InUse.
func (d *Driver) Hold(ctx context.Context, name, id string) (path string, err error) {
	use := node.Use{Kind: node.Operator, ID: id}
	return d.do(ctx, name, job{
		op: volume.Hold, phase: volume.Reconciling, keep: idleTTL, joins: true,
		work: d.bringUp,
		commit: func(ctx context.Context, h *handle) (string, func(), error) {
			if err := d.dropOthers(ctx, h, use); err != nil {
				return "", nil, err
			}
			undo, err := d.use(ctx, h, use)
			return h.Mountpoint(), undo, err
		},
	})
}

// dropOthers makes sure that nothing else uses the volume.
func (d *Driver) dropOthers(ctx context.Context, h *handle, wanted node.Use) error {
	e := h.Entry()
	if e.Has(wanted) {
		return nil // its answer was lost
	}
	users, err := h.Users(ctx)
	switch {
	case err != nil:
		return err
	case len(users) > 0:
		return volume.Fail(volume.InUse, fmt.Sprintf("in use by %s on this node", users), "stop what uses it first")
	case e.HasKind(node.Docker):
		return volume.Fail(volume.InUse, fmt.Sprintf("%d container(s) of this node have mounted it", len(e.Uses)), "stop them first; if they have died, try again in two minutes")
	}
	for _, other := range e.Uses {
		h.Unuse(other, false)
	}
	return nil
}

// Drop ends what Hold began, and releases the volume at once.
func (d *Driver) Drop(ctx context.Context, name, id string) error {
	return d.endUse(ctx, name, volume.Drop, node.Use{Kind: node.Operator, ID: id})
}
