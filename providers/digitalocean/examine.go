package digitalocean

import (
	"context"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers/managed"
)

// tryPermissions reads what only the scope tag:read lets a token read: without it, volumes look as if they had no tags.
func (p *Provider) tryPermissions(ctx context.Context) (tried string, refusals []error) {
	if _, _, err := p.countTagged(ctx, "blockvol-doctor"); err != nil {
		return "", []error{err}
	}
	return "DigitalOcean lets the token read volumes, droplets and tags; whether it may write cannot be tried without a change", nil
}

// quotas asks for the account's limit of volumes, which only the scope account:read shows, and how many there are in all regions.
func (p *Provider) quotas(ctx context.Context) ([]managed.Quota, error) {
	account, _, err := p.api.Account.Get(ctx)
	if err := p.explain(ctx, "the request for the account", err, account != nil && account.UUID != ""); err != nil {
		return nil, err
	}
	if account.VolumeLimit == 0 {
		return nil, nil // it is not told
	}
	_, answer, err := p.api.Storage.ListVolumes(ctx, &godo.ListVolumeParams{ListOptions: &godo.ListOptions{Page: 1, PerPage: 1}})
	if err := p.explain(ctx, "the request for the number of volumes", err, answer != nil && answer.Meta != nil); err != nil {
		return nil, err
	}
	return []managed.Quota{{What: "volumes", Used: int64(answer.Meta.Total), Most: int64(account.VolumeLimit)}}, nil
}
