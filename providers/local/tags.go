package local

import (
	"context"
	"errors"
	"io/fs"
	"maps"

	"github.com/blockvol/blockvol/providers"
)

// Tags returns the tags of a volume.
func (p *Provider) Tags(ctx context.Context, id string) (map[string]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !p.disks.valid(id) {
		return nil, providers.NotOurs(id)
	}
	m, err := p.disks.read(id)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && m.Cluster != p.cluster:
		return nil, providers.NotOurs(id)
	case err != nil:
		return nil, err
	}
	return maps.Clone(m.Tags), nil
}
