package linode

import "context"

// shutDown asks for the Linode to be shut down. Linode has no request that cuts the power at once: it asks the system to shut down, and
// cuts it off if it does not.
func (p *Provider) shutDown(ctx context.Context, node string) error {
	return p.do(ctx, "the request to shut down Linode "+node, func(ctx context.Context) error { return p.api.ShutdownInstance(ctx, number(node)) })
}

// boot starts the Linode with the configuration profile that it had last.
func (p *Provider) boot(ctx context.Context, node string) error {
	return p.do(ctx, "the request to boot Linode "+node, func(ctx context.Context) error { return p.api.BootInstance(ctx, number(node), 0) })
}

// tryFence looks at the scopes of the token, which Linode tells with each answer.
func (p *Provider) tryFence(ctx context.Context) (tried string, off, on error) {
	self, err := p.self.Node(ctx)
	if err == nil {
		_, err = p.instance(ctx, self.ID)
	}
	if err != nil {
		return "", err, nil
	}
	told, lack := p.lacks("linodes:read_write")
	if !told {
		return "", nil, nil
	}
	return "the token has the scope linodes:read_write, with which Linodes are shut down and booted", lack, nil
}
