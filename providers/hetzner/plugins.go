package hetzner

import (
	"context"
	"strings"
)

// docker-volume-hetzner gives its volumes this label, and a name that begins with a prefix, which is this one unless it was set.
const (
	pluginLabel  = "docker-volume-hetzner"
	pluginPrefix = "docker-"
)

func (p *Provider) ofPlugin(ctx context.Context) ([]*volume, error) {
	return p.list(ctx, "label_selector", pluginLabel)
}

func pluginName(v *volume) (name string, marked bool) {
	_, marked = v.Labels[pluginLabel]
	return strings.TrimPrefix(v.Name, pluginPrefix), marked
}
