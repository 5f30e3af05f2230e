package managed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

// Find returns the volume of that exact name.
func (p *Provider[V]) Find(ctx context.Context, name string) (*providers.Volume, error) {
	d, err := p.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.Volume(ctx, d, true)
}

// Lookup is Find without a question about the attachment.
func (p *Provider[V]) Lookup(ctx context.Context, name string) (Disk[V], error) {
	if name == "" {
		return Disk[V]{}, fmt.Errorf("%w: a volume without a name", providers.ErrNotFound)
	}
	lately, asked := p.memory.lately()[name], time.Now() // before the question, whose answer may come after it is forgotten
	all, err := p.ByName(ctx, name)
	if err != nil {
		return Disk[V]{}, err
	}
	d, err := p.One(name, all)
	if errors.Is(err, providers.ErrNotFound) && lately.id != "" {
		return p.created(ctx, name, lately, err)
	}
	p.absent.Put(name, asked, errors.Is(err, providers.ErrNotFound))
	return d, err
}

// created settles whether a volume that no answer shows is not there, or was created by this process so lately that answers do not
// show it yet. Only a question asked when they must is answered with missing.
func (p *Provider[V]) created(ctx context.Context, name string, lately creation, missing error) (Disk[V], error) {
	for retry := (pace.Backoff{Most: time.Second}); ; {
		asked := time.Now()
		d, err := p.getOnce(ctx, lately.id)
		switch {
		case err == nil && p.IsOurs(d) && d.Name == name:
			return d, d.Damaged
		case errors.Is(err, ErrDeleted):
			p.memory.lose(lately.id)
			return d, missing
		case err != nil && !errors.Is(err, providers.ErrNotFound):
			return d, err
		case asked.Sub(lately.at) >= Lag:
			return d, missing
		}
		if err := retry.Wait(ctx); err != nil {
			return d, err
		}
	}
}

// ByName returns what may be the volumes of the name. Questions that come together share a request.
func (p *Provider[V]) ByName(ctx context.Context, name string) ([]Disk[V], error) {
	all, _, err := p.byName.Get(ctx, name)
	return all, err
}

// askNamed asks for the volumes of several names.
func (p *Provider[V]) askNamed(ctx context.Context, names []string) (map[string][]Disk[V], error) {
	asked := time.Now()
	all, err := p.cloud.Named(ctx, names)
	found := make(map[string][]Disk[V], len(all))
	for name, list := range all {
		for _, v := range list {
			found[name] = append(found[name], p.show(v, asked))
		}
	}
	return found, err
}

// One returns the volume of the name among all that may be. One name is one volume's: if an accident or somebody's hands made it
// two, neither is taken for the right one. Errors: ErrNotFound, ErrAmbiguous, that of a damaged volume which may be the one.
func (p *Provider[V]) One(name string, all []Disk[V]) (one Disk[V], err error) {
	var ours []Disk[V]
	for _, d := range all {
		mayBe := !d.hidden && (d.Cluster == "" || d.Cluster == p.cloud.Cluster) && (d.Name == "" || d.Name == name)
		switch {
		case d.Damaged != nil && mayBe:
			return one, d.Damaged
		case p.IsOurs(d) && d.Name == name:
			ours = append(ours, d)
		}
	}
	switch len(ours) {
	case 0:
		return one, fmt.Errorf("%w: %s has none named %q in cluster %q", providers.ErrNotFound, p.cloud.Name, name, p.cloud.Cluster)
	case 1:
		return ours[0], nil
	}
	return one, p.ambiguous(name, ours)
}

func (p *Provider[V]) ambiguous(name string, all []Disk[V]) error {
	shown := make([]string, len(all))
	for i, d := range all {
		shown[i] = "volume " + d.ID
		if p.cloud.Zone != "" {
			shown[i] += " in " + p.cloud.Zone + " " + d.Zone
		}
	}
	slices.Sort(shown)
	return fmt.Errorf("%w: %q is the name of %s: find out which holds the data, and take %s from the others",
		providers.ErrAmbiguous, name, strings.Join(shown, " and "), p.cloud.Unname)
}

// List returns the cluster's volumes, sorted by name. Those that share a name or are damaged are left out, and the error names
// them.
func (p *Provider[V]) List(ctx context.Context) ([]*providers.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	lately, asked := p.memory.lately(), time.Now()
	all, err := p.cloud.All(ctx)
	if err != nil {
		return nil, err
	}
	var problems []error
	byName := make(map[string][]Disk[V])
	for _, v := range all {
		d := p.show(v, asked)
		switch {
		case d.hidden:
		case d.Damaged != nil && (d.Cluster == "" || d.Cluster == p.cloud.Cluster):
			if d.Name != "" {
				d.Damaged = fmt.Errorf("%q: %w", d.Name, d.Damaged)
			}
			problems = append(problems, d.Damaged)
		case p.IsOurs(d):
			byName[d.Name] = append(byName[d.Name], d)
			delete(lately, d.Name)
		}
	}
	for name, v := range lately {
		d, err := p.created(ctx, name, v, providers.ErrNotFound)
		if err == nil {
			byName[name] = append(byName[name], d)
		} else if !errors.Is(err, providers.ErrNotFound) {
			return nil, err
		}
	}
	var list []*providers.Volume
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		var v *providers.Volume
		d, err := p.One(name, byName[name])
		if err == nil {
			v, err = p.Volume(ctx, d, false)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		list = append(list, v)
	}
	return list, errors.Join(problems...)
}
