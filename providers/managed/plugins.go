package managed

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// Plugin recognises the disks of another plugin.
type Plugin[V any] struct {
	// List returns the disks that may be the plugin's.
	List func(ctx context.Context) ([]V, error)

	// Name returns the name of the plugin's volume, "" if the disk is none of the plugin's, and whether the disk has the plugin's own mark.
	Name func(V) (name string, marked bool)
}

// Plugins are the plugins whose disks PluginDisks lists.
func (p *Provider[V]) Plugins() []string { return slices.Sorted(maps.Keys(p.cloud.Plugins)) }

// PluginDisks lists the disks of another plugin.
func (p *Provider[V]) PluginDisks(ctx context.Context, name string) ([]providers.PluginDisk, error) {
	plugin, known := p.cloud.Plugins[name]
	if !known {
		return nil, fmt.Errorf("%w: %s has no disks of %q, but of %s", providers.ErrInvalid, p.cloud.Name, name, strings.Join(p.Plugins(), ", "))
	}
	here, err := p.Node(ctx)
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	all, err := plugin.List(ctx)
	if err != nil {
		return nil, err
	}
	var found []providers.PluginDisk
	for _, v := range all {
		d := p.show(v, asked)
		name, marked := plugin.Name(v)
		if name == "" || d.Marked || d.hidden || d.Damaged != nil || d.Zone != "" && here.Zone != "" && d.Zone != here.Zone {
			continue
		}
		found = append(found, providers.PluginDisk{ID: d.ID, Name: name, Size: d.Size, Zone: d.Zone, CreatedAt: d.CreatedAt, Node: d.Attachment.Node, Marked: marked})
	}
	slices.SortFunc(found, func(a, b providers.PluginDisk) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return found, nil
}
