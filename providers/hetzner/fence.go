package hetzner

import "context"

// powerOff is "equivalent to pulling the power cord" (API reference, "Power off a server").
func (p *Provider) powerOff(ctx context.Context, node string) error {
	_, err := p.act(ctx, "the request to power off server "+node, "/servers/"+node+"/actions/poweroff", nil)
	return err
}

func (p *Provider) powerOn(ctx context.Context, node string) error {
	_, err := p.act(ctx, "the request to power on server "+node, "/servers/"+node+"/actions/poweron", nil)
	return err
}
