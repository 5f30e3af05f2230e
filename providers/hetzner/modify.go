package hetzner

import (
	"context"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/providers/managed"
)

// resize enlarges a volume, in use or not.
func (p *Provider) resize(ctx context.Context, d managed.Disk[*volume], gib int64) error {
	a, err := p.change(ctx, "the request to enlarge volume "+d.ID, d.ID, "resize", schema.VolumeActionResizeVolumeRequest{Size: int(gib)})
	if err != nil {
		return err
	}
	return p.await(ctx, "enlarge volume "+d.ID, a)
}
