package hetzner

import (
	"context"
	"strings"
)

// docker-volume-hetzner gives its volumes this label, and a name that begins with a prefix, which is this one unless it was set.
const (
	peerLabel  = "docker-volume-hetzner"
	peerPrefix = "docker-"
)

func (p *Provider) peers(ctx context.Context) ([]*volume, error) {
	return p.list(ctx, "label_selector", peerLabel)
}

func peerName(v *volume) (name string, marked bool) {
	_, marked = v.Labels[peerLabel]
	return strings.TrimPrefix(v.Name, peerPrefix), marked
}
