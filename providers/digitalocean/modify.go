package digitalocean

import (
	"context"
	"fmt"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers/managed"
)

// resize enlarges a volume, in use or not, and returns once DigitalOcean shows the new size.
func (p *Provider) resize(ctx context.Context, d managed.Disk[godo.Volume], gib int64) error {
	region := ""
	if d.Native.Region != nil {
		region = d.Native.Region.Slug
	}
	asked, _, err := p.api.StorageActions.Resize(ctx, d.ID, int(gib), region)
	err = found(p.explain(ctx, fmt.Sprintf("the request to enlarge volume %s to %d GiB", d.ID, gib), err, asked != nil && asked.ID != 0))
	if err != nil {
		return err
	}
	for retry := (pause.Backoff{Most: 5 * time.Second}); ; {
		v, err := p.get(ctx, d.ID)
		if err != nil || v.SizeGigaBytes >= gib {
			return err
		}
		action, err := p.action(ctx, d.ID, asked.ID)
		switch {
		case err != nil:
			return err
		case action.Status != godo.ActionInProgress && action.Status != godo.ActionCompleted:
			return fmt.Errorf("DigitalOcean could not enlarge volume %s: it calls its action %d %q", d.ID, asked.ID, p.http.Clean(action.Status))
		}
		if err := retry.Wait(ctx); err != nil {
			return fmt.Errorf("DigitalOcean is still enlarging volume %s: %w", d.ID, err)
		}
	}
}
