package driver

import (
	"context"
	"fmt"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
)

// Release unmounts and detaches a volume that nothing on this node uses, at once and not after the time that it is kept. A volume of which
// this node has nothing is success. Errors: volume.InUse.
func (d *Driver) Release(ctx context.Context, name string) error {
	if h := d.known(name); h == nil || h.Entry() == nil {
		return nil
	}
	_, err := d.do(ctx, name, job{op: volume.Release, phase: volume.Releasing, work: d.releaseIfUnused})
	return err
}

func (d *Driver) releaseIfUnused(ctx context.Context, h *handle) error {
	e := h.Entry()
	if e == nil {
		return nil
	}
	usage, err := h.Usage(ctx, false)
	if err != nil {
		return err
	}
	switch usage {
	case node.Unused, node.Abandoned:
		return d.release(ctx, h)
	case node.Undecided:
		return volume.Fail(volume.InUse, fmt.Sprintf("%d container(s) of this node have mounted it, and none can be seen to use it yet", len(e.Uses)),
			"if none is being started, try again in two minutes")
	case node.Used, node.Idle:
	case node.Active:
		return volume.Fail(volume.InUse, "its device is being read or written by something of another engine of this machine", "end that first")
	}
	return volume.Fail(volume.InUse, fmt.Sprintf("in use by %s on this node", h.LastUsers()), "stop what uses it first")
}
