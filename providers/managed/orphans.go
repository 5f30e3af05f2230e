package managed

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/providers"
)

// Former is the volume that a disk was.
type Former struct{ Cluster, Name string }

// Orphans lists the disks that blockvol has made or adopted and that are no volumes.
func (p *Provider[V]) Orphans(ctx context.Context) ([]providers.Orphan, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all, err := p.cloud.Known(ctx)
	if err != nil {
		return nil, err
	}
	var found []providers.Orphan
	named := make(map[string][]Disk[V])
	for _, v := range all {
		d := p.cloud.Show(v)
		switch {
		case p.Hides(d): // the answer is of a time before it was forgotten or deleted
		case p.IsOurs(d) && d.Damaged == nil && d.Leftover == "":
			named[d.Name] = append(named[d.Name], d)
		default:
			if orphan, is := p.orphan(d); is {
				found = append(found, orphan)
			}
		}
	}
	for name, disks := range named {
		if len(disks) < 2 {
			continue
		}
		for _, d := range disks {
			o := orphanOf(d, name, providers.OrphanAmbiguous)
			o.Detail = fmt.Sprintf("%d disks have this name: find out which holds the data, and take %s from the others", len(disks), p.cloud.Unname)
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b providers.Orphan) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return found, nil
}

// orphan describes a disk that is no volume, and returns false for another cluster's.
func (p *Provider[V]) orphan(d Disk[V]) (o providers.Orphan, is bool) {
	ours := p.cloud.Cluster
	switch {
	case d.Cluster != "" && d.Cluster != ours, d.Cluster == "" && d.Former.Cluster != "" && d.Former.Cluster != ours:
		return o, false
	case d.Leftover != "":
		o = orphanOf(d, d.Former.Name, providers.OrphanUnfinished)
		o.Detail = d.Leftover
	case d.Damaged != nil:
		o = orphanOf(d, d.Name, providers.OrphanUnreadable)
		o.Detail = d.Damaged.Error()
	case d.Marked:
		o = orphanOf(d, d.Name, providers.OrphanUnreadable)
		o.Detail = "its name cannot be read, since somebody has changed its marks"
	case d.Former.Cluster == "":
		o = orphanOf(d, d.Former.Name, providers.OrphanUnclaimed)
	default:
		o = orphanOf(d, d.Former.Name, providers.OrphanKept)
	}
	return o, true
}

func orphanOf[V any](d Disk[V], name string, kind providers.OrphanKind) providers.Orphan {
	return providers.Orphan{ID: d.ID, Name: name, Kind: kind, Size: d.Size, Zone: d.Zone, CreatedAt: d.CreatedAt, Node: d.Attachment.Node}
}
