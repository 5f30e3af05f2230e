package digitalocean

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

// Modify returns once DigitalOcean shows the new size.
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	asked := time.Now()
	v, err := p.lookupOurs(ctx, id)
	if err != nil {
		return nil, err
	}
	gibs, err := sizes.Of(change.Size)
	switch err := errors.Join(err, providers.CheckOnlyGrows("DigitalOcean", change)); {
	case err != nil:
		return nil, err
	case gibs == 0, gibs == v.SizeGigaBytes:
		return p.describe(v, asked), nil
	case gibs < v.SizeGigaBytes:
		return nil, sizes.Shrinks(id, v.SizeGigaBytes)
	}
	asked = time.Now()
	if v, err = p.grow(ctx, v, gibs); err != nil {
		return nil, err
	}
	return p.describe(v, asked), nil
}

// grow makes a volume larger, and returns it as it is then.
func (p *Provider) grow(ctx context.Context, v godo.Volume, gibs int64) (godo.Volume, error) {
	node := "volume " + v.ID
	if len(v.DropletIDs) > 0 { // which is busy meanwhile
		node = strconv.Itoa(v.DropletIDs[0])
	}
	region := ""
	if v.Region != nil {
		region = v.Region.Slug
	}
	var action *godo.Action
	err := p.line.Do(ctx, node, func(ctx context.Context) (err error) {
		action, _, err = p.api.StorageActions.Resize(ctx, v.ID, int(gibs), region)
		return p.explain(ctx, fmt.Sprintf("the request to enlarge volume %s to %d GiB", v.ID, gibs), err, action != nil && action.ID != 0)
	})
	switch {
	case isMissing(err):
		return v, fmt.Errorf("%w: %w", providers.ErrNotFound, err)
	case errors.Is(err, providers.ErrInvalid): // perhaps because it is as large by now
		now, failed := p.lookupOurs(ctx, v.ID)
		switch {
		case failed != nil:
			return v, failed
		case now.SizeGigaBytes > gibs:
			return v, sizes.Shrinks(now.ID, now.SizeGigaBytes)
		case now.SizeGigaBytes == gibs:
			return now, nil
		}
		return v, err
	case err != nil:
		return v, err
	}
	return p.grown(ctx, v.ID, gibs, action.ID)
}

// grown waits for the end of an action that makes a volume larger.
func (p *Provider) grown(ctx context.Context, id string, gibs int64, action int) (godo.Volume, error) {
	retry := pace.Backoff{Most: 5 * time.Second}
	for {
		v, err := p.lookupOurs(ctx, id)
		if err != nil || v.SizeGigaBytes >= gibs {
			return v, err
		}
		now, _, err := p.api.StorageActions.Get(ctx, id, action)
		if err = p.explain(ctx, fmt.Sprintf("the request for action %d of volume %s", action, id), err, now != nil && now.ID == action); err != nil {
			return v, err
		}
		if now.Status != godo.ActionInProgress && now.Status != godo.ActionCompleted {
			return v, fmt.Errorf("DigitalOcean could not enlarge volume %s: it calls its action %d %q", id, action, p.http.Clean(now.Status))
		}
		if err := retry.Wait(ctx); err != nil {
			return v, fmt.Errorf("DigitalOcean is still enlarging volume %s: %w", id, err)
		}
	}
}
