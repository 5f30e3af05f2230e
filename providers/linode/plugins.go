package linode

import (
	"context"
	"slices"
	"strings"

	sdk "github.com/linode/linodego"
)

// docker-volume-linode takes all volumes of its region for its own, by their labels. It tags those for which options were given.
const pluginPrefix = "docker-volume-"

func (p *Provider) ofPlugin(ctx context.Context) ([]sdk.Volume, error) {
	return p.list(ctx, map[string]any{})
}

func pluginName(v sdk.Volume) (name string, marked bool) {
	return v.Label, slices.ContainsFunc(v.Tags, func(tag string) bool { return strings.HasPrefix(tag, pluginPrefix) })
}
