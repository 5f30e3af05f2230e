package openstack

import (
	"context"
	"fmt"
	"net/http"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
)

// stop asks Nova to stop the server. Nova lets its system shut down, and cuts the power off when that has taken a minute, or as long as
// the cloud or the image allows (shutdown_timeout, os_shutdown_timeout).
func (p *Provider) stop(ctx context.Context, node string) error {
	return p.power(ctx, "the request to stop server "+node, node, "stopped", func(ctx context.Context, c *gophercloud.ServiceClient) error {
		return servers.Stop(ctx, c, node).ExtractErr()
	})
}

func (p *Provider) start(ctx context.Context, node string) error {
	return p.power(ctx, "the request to start server "+node, node, "active", func(ctx context.Context, c *gophercloud.ServiceClient) error {
		return servers.Start(ctx, c, node).ExtractErr()
	})
}

// power sends a request. Nova refuses it if the server is in that state already.
func (p *Provider) power(ctx context.Context, action, node, state string, send func(context.Context, *gophercloud.ServiceClient) error) error {
	_, err := call(ctx, p, action, func(ctx context.Context, s *session) (done, error) { return done{}, send(ctx, s.compute) })
	switch {
	case refused(err, http.StatusNotFound) && !missing(err, node):
		return unknown("server", node, err)
	case !refused(err, http.StatusConflict):
		return err
	case says(err, "locked"):
		return managed.Certain(fmt.Errorf("%w: server %s is locked: unlock it (openstack server unlock): %w", providers.ErrInvalid, node, err))
	case says(err, "task_state"):
		return fmt.Errorf("%w: server %s is busy with another task: %w", providers.ErrBusy, node, err)
	case says(err, "vm_state "+state):
		return fmt.Errorf("%w: %w", managed.ErrPowered, err)
	}
	return err
}
