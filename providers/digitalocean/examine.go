package digitalocean

import "context"

// tryPermissions reads what only the scope tag:read lets a token read: without it, volumes look as if they had no tags.
func (p *Provider) tryPermissions(ctx context.Context) (tried string, refusals []error) {
	if _, _, err := p.countTagged(ctx, "blockvol-doctor"); err != nil {
		return "", []error{err}
	}
	return "DigitalOcean lets the token read volumes, droplets and tags; whether it may write cannot be tried without a change", nil
}
