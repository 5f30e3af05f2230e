package local

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/providers"
)

// Orphans lists the images that are no volumes: forgotten ones, and those whose description cannot be read.
func (p *Provider) Orphans(ctx context.Context) ([]providers.Orphan, error) {
	ids, err := p.disks.ids(ready)
	if err != nil {
		return nil, err
	}
	var found []providers.Orphan
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m, err := p.disks.read(id)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !p.disks.has(id, ready): // deleted just now
		case errors.Is(err, fs.ErrNotExist):
			found = append(found, providers.Orphan{ID: id, Kind: providers.OrphanUnreadable, Detail: p.disks.noDescription(id).Error()})
		case err != nil:
			found = append(found, providers.Orphan{ID: id, Kind: providers.OrphanUnreadable, Detail: err.Error()})
		case m.Cluster == "":
			o := providers.Orphan{ID: id, Kind: providers.OrphanUnclaimed, Size: m.Size, CreatedAt: m.Created}
			if f := m.Formerly; f != nil {
				o.Name, o.Kind = f.Name, providers.OrphanKept
				if f.Cluster != p.cluster {
					continue
				}
			}
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b providers.Orphan) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return found, nil
}
