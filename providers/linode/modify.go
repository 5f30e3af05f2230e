package linode

import (
	"context"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers/managed"
)

// resize asks once. Linode would also resize a volume in use, but its device keeps its size until it is attached again: see
// managed.Cloud.ResizeDetached.
func (p *Provider) resize(ctx context.Context, d managed.Disk[sdk.Volume], gib int64) error {
	return p.do(ctx, "the request to resize volume "+d.ID, func(ctx context.Context) error { return p.api.ResizeVolume(ctx, d.Native.ID, int(gib)) })
}
