package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockvol/blockvol/providers"
)

// Adopt gives a forgotten volume a name, whatever its former cluster was.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(ctx.Err(), p.checkSpec(spec)); err != nil {
		return nil, err
	}
	m, lock, err := p.disks.open(ctx, id)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m.Cluster == p.cluster && m.Name == spec.Name {
		return p.volume(m)
	}
	if m.Cluster != "" {
		return nil, invalid("%s is volume %q of cluster %s already", id, m.Name, m.Cluster)
	}
	if err := p.checkFree(m); err != nil {
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	}
	switch other, err := p.disks.find(p.cluster, spec.Name); {
	case err == nil:
		return nil, invalid("the name %q belongs to %s", spec.Name, other.ID)
	case !errors.Is(err, providers.ErrNotFound):
		return nil, err
	}
	m.Cluster, m.Name, m.Formerly = p.cluster, spec.Name, nil
	m.Record = merge(m.Record, spec.Record)
	m.Tags = merge(m.Tags, spec.Tags)
	// The link does not count until the description has the name.
	if err := p.disks.name(m); err != nil {
		return nil, err
	}
	if err := p.disks.write(m); err != nil {
		return nil, err
	}
	return p.volume(m)
}

// Forget keeps the image and its description, with the former name, for Adopt.
func (p *Provider) Forget(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, lock, err := p.disks.open(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	switch m.Cluster {
	case "":
		return nil
	case p.cluster:
	default:
		return providers.NotOurs(id)
	}
	if err := p.checkFree(m); err != nil {
		return err
	}
	named := *m
	m.Formerly = &former{Cluster: m.Cluster, Name: m.Name}
	m.Cluster, m.Name, m.Holder = "", "", nil
	if err := p.disks.write(m); err != nil {
		return err
	}
	return p.disks.unname(&named)
}
