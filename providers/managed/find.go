package managed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// Find returns the volume of that exact name.
func (p *Provider[V]) Find(ctx context.Context, name string) (*providers.Volume, error) {
	d, err := p.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.Volume(ctx, d, true)
}

// Lookup is Find without asking about the attachment.
func (p *Provider[V]) Lookup(ctx context.Context, name string) (Disk[V], error) {
	if name == "" {
		return Disk[V]{}, fmt.Errorf("%w: a volume without a name", providers.ErrNotFound)
	}
	lately, asked := p.memory.lately()[name], time.Now() // read before the question: it may be forgotten before the answer comes
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

// created finds out whether a volume that no answer shows does not exist, or was created by this process so recently that answers
// do not show it yet. It returns missing only if an answer that must show the volume does not.
func (p *Provider[V]) created(ctx context.Context, name string, lately creation, missing error) (Disk[V], error) {
	for retry := (pause.Backoff{Most: time.Second}); ; {
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
		case asked.Sub(lately.at) >= providers.MaxStale:
			return d, missing
		}
		if err := retry.Wait(ctx); err != nil {
			return d, err
		}
	}
}

// ByName returns the disks that may be the volume of that name. Calls at the same time share a request.
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

// One returns the volume of that name among the disks that may be it. If two volumes have the name, it chooses neither.
// Errors: ErrNotFound; ErrAmbiguous; Damaged of a disk that may be the volume.
func (p *Provider[V]) One(name string, all []Disk[V]) (one Disk[V], err error) {
	var ours []*providers.Volume
	for _, d := range all {
		mayBe := !d.hidden && (d.Cluster == "" || d.Cluster == p.cloud.Cluster) && (d.Name == "" || d.Name == name)
		switch {
		case d.Damaged != nil && mayBe:
			return Disk[V]{}, d.Damaged
		case p.IsOurs(d) && d.Name == name:
			one, ours = d, append(ours, &d.Volume)
		}
	}
	switch len(ours) {
	case 0:
		return one, fmt.Errorf("%w: %s has none named %q in cluster %q", providers.ErrNotFound, p.cloud.Name, name, p.cloud.Cluster)
	case 1:
		return one, nil
	}
	return Disk[V]{}, p.ambiguous(name, ours)
}

func (p *Provider[V]) ambiguous(name string, all []*providers.Volume) error {
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

// List returns the cluster's volumes, sorted by name. It leaves out volumes that are damaged or share a name; the error names them.
func (p *Provider[V]) List(ctx context.Context) ([]*providers.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return p.list(ctx, p.memory.lately(), p.cloud.All)
}

// ListHeld implements providers.HeldLister.
func (p *Provider[V]) ListHeld(ctx context.Context, node string) ([]*providers.Volume, error) {
	ask := p.cloud.All
	if p.cloud.Held != nil {
		ask = func(ctx context.Context) ([]V, error) { return p.cloud.Held(ctx, node) }
	}
	all, err := p.list(ctx, nil, ask)
	return slices.DeleteFunc(all, func(v *providers.Volume) bool { return !v.HeldBy(node) }), err
}

// list is List of what ask returns, and of what this process has created lately.
func (p *Provider[V]) list(ctx context.Context, lately map[string]creation, ask func(context.Context) ([]V, error)) ([]*providers.Volume, error) {
	asked := time.Now()
	all, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	type answer struct {
		volume *providers.Volume
		err    error
	}
	var problems []error
	byName, records, details := make(map[string][]answer), make(sharing), make(sharing)
	found := func(d Disk[V]) {
		d.Record, d.Details = records.one(d.Record), details.one(d.Details)
		v, err := p.Volume(ctx, d, false)
		if err != nil {
			v = &providers.Volume{ID: d.ID, Zone: d.Zone} // if it shares its name, the error names it
		}
		byName[d.Name] = append(byName[d.Name], answer{v, err})
	}
	for i := range all {
		d := p.show(all[i], asked)
		var none V
		all[i] = none // frees the cloud's own description, which takes most of the memory
		switch {
		case d.hidden:
		case d.Damaged != nil && (d.Cluster == "" || d.Cluster == p.cloud.Cluster):
			if d.Name != "" {
				d.Damaged = fmt.Errorf("%q: %w", d.Name, d.Damaged)
			}
			problems = append(problems, d.Damaged)
		case p.IsOurs(d):
			found(d)
			delete(lately, d.Name)
		}
	}
	for name, v := range lately {
		d, err := p.created(ctx, name, v, providers.ErrNotFound)
		if err == nil {
			found(d)
		} else if !errors.Is(err, providers.ErrNotFound) {
			return nil, err
		}
	}
	list := make([]*providers.Volume, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		switch one := byName[name]; {
		case len(one) > 1:
			var several []*providers.Volume
			for _, a := range one {
				several = append(several, a.volume)
			}
			problems = append(problems, p.ambiguous(name, several))
		case one[0].err != nil:
			problems = append(problems, one[0].err)
		default:
			list = append(list, one[0].volume)
		}
	}
	return list, errors.Join(problems...)
}

// sharing replaces equal maps by one, by their text. Most volumes of a list have the same Record and Details, and a map takes more
// memory than the rest of a volume.
type sharing map[string]map[string]string

// mostShared bounds the number of maps kept: if each volume has its own, as Details with a name, sharing gains nothing.
const mostShared = 100

func (s sharing) one(m map[string]string) map[string]string {
	if len(m) == 0 { // a Record is never nil, Details may be
		return m
	}
	text := make([]byte, 0, 256)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		text = strconv.AppendQuote(strconv.AppendQuote(text, key), m[key])
	}
	if same, is := s[string(text)]; is {
		return same
	}
	if len(s) < mostShared {
		s[string(text)] = m
	}
	return m
}
