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

// Peer recognises the disks of another plugin.
type Peer[V any] struct {
	// List returns the disks that may be the plugin's.
	List func(ctx context.Context) ([]V, error)

	// Name returns the name of the plugin's volume, "" if the disk is none of the plugin's, and whether the disk has the plugin's own mark.
	Name func(V) (name string, marked bool)
}

// Peers are the plugins whose disks PeerDisks lists.
func (p *Provider[V]) Peers() []string { return slices.Sorted(maps.Keys(p.cloud.Peers)) }

// PeerDisks lists the disks of another plugin.
func (p *Provider[V]) PeerDisks(ctx context.Context, name string) ([]providers.PeerDisk, error) {
	peer, known := p.cloud.Peers[name]
	if !known {
		return nil, fmt.Errorf("%w: %s has no disks of %q, but of %s", providers.ErrInvalid, p.cloud.Name, name, strings.Join(p.Peers(), ", "))
	}
	here, err := p.Node(ctx)
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	all, err := peer.List(ctx)
	if err != nil {
		return nil, err
	}
	var found []providers.PeerDisk
	for _, v := range all {
		d := p.show(v, asked)
		name, marked := peer.Name(v)
		if name == "" || d.Marked || d.hidden || d.Damaged != nil || d.Zone != "" && here.Zone != "" && d.Zone != here.Zone {
			continue
		}
		found = append(found, providers.PeerDisk{ID: d.ID, Name: name, Size: d.Size, Zone: d.Zone, CreatedAt: d.CreatedAt, Node: d.Attachment.Node, Marked: marked})
	}
	slices.SortFunc(found, func(a, b providers.PeerDisk) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return found, nil
}
