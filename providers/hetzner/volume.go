package hetzner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/quote"
	"github.com/blockvol/blockvol/providers/rest"
)

const gib = 1 << 30

// perPage is the greatest page (API reference, "Pagination").
const perPage = 50

// list returns all volumes that one of the API's filters lets through.
func (p *Provider) list(ctx context.Context, filter, value string) ([]*volume, error) {
	const request = "the request for a list of volumes"
	asked := time.Now()
	all, err := rest.Pages("Hetzner Cloud", func(v *volume) int64 { return v.ID }, func(n int) ([]*volume, int, bool, error) {
		answer, err := p.api.volumes(ctx, url.Values{filter: {value}, "page": {strconv.Itoa(n)}, "per_page": {strconv.Itoa(perPage)}, "sort": {"id:asc"}})
		switch {
		case err != nil:
			return nil, 0, false, p.explain(ctx, request, err)
		case answer.Meta.Pagination == nil:
			return nil, 0, false, p.notItsOwn(ctx, request)
		}
		total, pagination := -1, answer.Meta.Pagination
		if pagination.TotalEntries != nil {
			total = *pagination.TotalEntries
		}
		page := make([]*volume, len(answer.Volumes))
		for i := range answer.Volumes {
			page[i] = &answer.Volumes[i]
		}
		return page, total, pagination.NextPage == nil, nil
	})
	for _, v := range all {
		p.saw(v, asked)
	}
	return all, err
}

func (p *Provider) saw(v *volume, asked time.Time) {
	p.seen.See(v.ID, asked, sighting{p.isOurs(v), v.Protection.Delete})
}

func (p *Provider) askByName(ctx context.Context, keys []string) (map[string][]*volume, error) {
	slices.Sort(keys)
	all, err := p.list(ctx, "label_selector", keyLabel+" in ("+strings.Join(keys, ",")+")")
	found := make(map[string][]*volume)
	for _, v := range all {
		found[v.Labels[keyLabel]] = append(found[v.Labels[keyLabel]], v)
	}
	return found, err
}

// Find looks in the whole project, whatever the location.
func (p *Provider) Find(ctx context.Context, name string) (*providers.Volume, error) {
	v, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.describe(ctx, v, true)
}

// find is Find in Hetzner's words.
func (p *Provider) find(ctx context.Context, name string) (*volume, error) {
	if name == "" {
		return nil, fmt.Errorf("%w: a volume without a name", providers.ErrNotFound)
	}
	all, _, err := p.byName.Get(ctx, p.nameOf(name))
	if err != nil {
		return nil, err
	}
	var ours []*volume
	for _, v := range all {
		b := read(v.Labels)
		if len(b.unreadable) > 0 && (b.cluster == "" || b.cluster == p.cluster) && (b.name == "" || b.name == name) {
			return nil, damaged(v, b.unreadable)
		}
		if b.cluster == p.cluster && b.name == name {
			ours = append(ours, v)
		}
	}
	return p.bearers().One(name, ours)
}

func (p *Provider) bearers() providers.Bearers[*volume] {
	return providers.Bearers[*volume]{
		Cloud: "Hetzner Cloud", Cluster: p.cluster, Take: "the label " + keyLabel,
		Show: func(v *volume) string { return fmt.Sprintf("%d in location %s", v.ID, v.Location.Name) },
	}
}

// List returns the cluster's volumes. Those that share a name or have damaged labels are left out, and the error names them.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	all, err := p.list(ctx, "label_selector", p.ours())
	if err != nil {
		return nil, err
	}
	var problems []error
	byName := make(map[string][]*volume)
	for _, v := range all {
		if b := read(v.Labels); len(b.unreadable) > 0 {
			problems = append(problems, damaged(v, b.unreadable))
		} else if p.isOurs(v) {
			byName[b.name] = append(byName[b.name], v)
		}
	}
	return p.bearers().List(byName, func(v *volume) (*providers.Volume, error) { return p.describe(ctx, v, false) }, problems...)
}

// describe puts Hetzner's description into the contract's words. It asks for what it does not tell only if it may.
func (p *Provider) describe(ctx context.Context, from *volume, ask bool) (*providers.Volume, error) {
	from, held, err := p.attachment(ctx, from, ask)
	if err != nil {
		return nil, err
	}
	if !p.isOurs(from) { // any more
		return nil, providers.NotOurs(text(from.ID))
	}
	b := read(from.Labels)
	return &providers.Volume{
		ID:         text(from.ID),
		Name:       b.name,
		Size:       int64(from.Size) * gib,
		Zone:       from.Location.Name,
		CreatedAt:  from.Created.UTC(),
		Serial:     text(from.ID),
		Record:     b.record,
		Attachment: held,
		Details:    map[string]string{"zone": from.Location.Name},
	}, nil
}

// get asks for a volume by its id, whoever it belongs to.
func (p *Provider) get(ctx context.Context, id string) (*volume, error) {
	if !isID.MatchString(id) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %q is no id of a volume of Hetzner Cloud, which is a number", providers.ErrNotFound, quote.Clip(id))
	}
	request, asked := "the question for volume "+id, time.Now()
	v, err := p.api.volume(ctx, number(id))
	switch {
	case err != nil:
		return nil, p.explain(ctx, request, err)
	case v == nil:
		return nil, fmt.Errorf("%w: Hetzner Cloud has no volume %s in this project", providers.ErrNotFound, id)
	case v.ID != number(id):
		return nil, p.notItsOwn(ctx, request)
	}
	p.saw(v, asked)
	return v, nil
}

// getOurs is get for a volume of this cluster.
func (p *Provider) getOurs(ctx context.Context, id string) (*volume, error) {
	v, err := p.get(ctx, id)
	if err == nil && !p.isOurs(v) {
		err = providers.NotOurs(id)
	}
	return v, err
}

// Delete destroys the volume. Hetzner itself refuses one that is attached.
func (p *Provider) Delete(ctx context.Context, id string) error {
	err := p.changing(ctx, id, func(ctx context.Context) error {
		v, err := p.getOurs(ctx, id)
		if err != nil {
			return err
		}
		if v, err = p.unheld(ctx, v); err != nil {
			return err
		}
		err = p.destroy(ctx, v)
		if errors.Is(err, providers.ErrNotFound) || errors.Is(err, providers.ErrBusy) || !isRefusal(err) {
			return err
		}
		// The reference does not say how an attached volume is refused: whatever it was, its holder is the reason.
		if now, look := p.get(ctx, id); look == nil && now.Server != nil {
			_ = p.protect(ctx, id, true) // it is in use after all; the next attach sees to it, if this does not
			return &providers.HeldError{Volume: id, Node: text(*now.Server)}
		}
		return err
	})
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	}
	return err
}

// unheld is an error if a server holds the volume. An attach that has failed holds nothing. The volume may have changed.
func (p *Provider) unheld(ctx context.Context, v *volume) (*volume, error) {
	id := text(v.ID)
	v, held, err := p.attachment(ctx, v, true)
	switch {
	case err != nil:
		return nil, err
	case held.State != providers.Detached && held.State != providers.AttachFailed:
		return nil, &providers.HeldError{Volume: id, Node: held.Node}
	case !p.isOurs(v):
		return nil, providers.NotOurs(id)
	}
	return v, nil
}

// destroy lifts the protection, and deletes.
func (p *Provider) destroy(ctx context.Context, v *volume) error {
	id := text(v.ID)
	request := "the request to delete volume " + id
	protected := v.Protection.Delete
	for again := true; ; again = false {
		if protected {
			if err := p.protect(ctx, id, false); err != nil {
				return err
			}
		}
		err := p.api.remove(ctx, v.ID)
		if err != nil {
			err = p.explain(ctx, request, err)
		}
		if again && errors.Is(err, errProtected) { // since it was read
			protected = true
			continue
		}
		if err == nil {
			p.seen.See(v.ID, time.Now(), sighting{})
		}
		return err
	}
}

// protect protects the volume from deletion, or lifts that.
func (p *Provider) protect(ctx context.Context, id string, on bool) error {
	request := "the request to protect volume " + id + " from deletion"
	if !on {
		request = "the request to lift the protection of volume " + id
	}
	a, err := p.api.changeProtection(ctx, number(id), on)
	if err != nil {
		return p.explain(ctx, request, err)
	}
	if err := p.await(ctx, "change the protection of volume "+id, a); err != nil {
		return err
	}
	p.seen.See(number(id), time.Now(), sighting{true, on})
	return nil
}

// Adopt gives an existing volume labels and name of one of ours. By its name it is told from any other that becomes this
// cluster's under the same name in that moment: Hetzner lets one have it. Two nodes that adopt one disk at once, under two
// names or for two clusters, may both succeed: then it is what the last one has made of it, and not there for the other.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record), checkTags(spec.Tags)); err != nil {
		return nil, err
	}
	var adopted *volume
	err := p.changing(ctx, id, func(ctx context.Context) (err error) {
		adopted, err = p.adopt(ctx, id, spec)
		return err
	})
	if err != nil {
		return nil, err
	}
	return p.describe(ctx, adopted, true)
}

func (p *Provider) adopt(ctx context.Context, id string, spec providers.Spec) (*volume, error) {
	v, err := p.get(ctx, id)
	if err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) (*volume, error) {
		return nil, fmt.Errorf("%w: volume %s %s", providers.ErrInvalid, id, fmt.Sprintf(format, args...))
	}
	b := read(v.Labels)
	again := p.isOurs(v) && b.name == spec.Name
	switch {
	case again && len(b.unreadable) == 0:
	case len(b.unreadable) > 0:
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, damaged(v, b.unreadable))
	case b.owned:
		return refuse("is volume %q of cluster %q already: remove it there with reclaim=retain first", b.name, b.cluster)
	case v.Status != volumeAvailable:
		return refuse("is %q at Hetzner Cloud: wait until it is available", quote.Clip(v.Status))
	case v.Server != nil:
		return refuse("is attached to server %d: detach it first", *v.Server)
	}
	switch other, err := p.find(ctx, spec.Name); {
	case err == nil && other.ID != v.ID:
		return refuse("cannot be %q: that is the name of volume %d", spec.Name, other.ID)
	case err != nil && !errors.Is(err, providers.ErrNotFound):
		return nil, err
	}
	marks := p.marks(v.Labels, spec)
	if again && maps.Equal(marks, v.Labels) {
		return v, nil
	}
	now, err := p.update(ctx, id, p.nameOf(spec.Name), marks)
	if errors.Is(err, errTaken) {
		return nil, p.whoseName(ctx, spec.Name, err)
	}
	if err == nil {
		p.saw(now, time.Now())
	}
	return now, err
}

// whoseName explains that the name which a volume of ours would have at Hetzner is another's.
func (p *Provider) whoseName(ctx context.Context, name string, refusal error) error {
	all, err := p.list(ctx, "name", p.nameOf(name))
	switch {
	case err != nil:
		return err
	case len(all) == 0:
		return fmt.Errorf("%w: a volume named %q was there and is gone at the same moment", providers.ErrBusy, name)
	}
	if p.isOurs(all[0]) {
		return fmt.Errorf("%w: %q is the name of volume %d by now", providers.ErrInvalid, name, all[0].ID)
	}
	return fmt.Errorf("%w: it is volume %d, which is not blockvol's, or whose labels have been changed: rename it, or adopt it by -o volume-id=%d", refusal, all[0].ID, all[0].ID)
}

// Forget takes cluster and name from the labels, and makes way for another volume of that name at Hetzner; the record stays.
// The protection is lifted first: whatever ends this process in between, the next call carries on.
func (p *Provider) Forget(ctx context.Context, id string) error {
	return p.changing(ctx, id, func(ctx context.Context) error {
		v, err := p.get(ctx, id)
		if err != nil {
			return err
		}
		if !read(v.Labels).owned {
			return nil
		}
		if !p.isOurs(v) {
			return providers.NotOurs(id)
		}
		if v, err = p.unheld(ctx, v); err != nil {
			return err
		}
		if v.Protection.Delete {
			if err := p.protect(ctx, id, false); err != nil {
				return err
			}
		}
		left := maps.Clone(v.Labels)
		for _, mark := range []string{labelCluster, labelName, labelKey} {
			take(left, prefix, mark)
		}
		now, err := p.update(ctx, id, forgotten(v), left)
		if err == nil {
			p.saw(now, time.Now())
		}
		return err
	})
}

// forgotten is what a volume is called that is nobody's: its name, and its id in place of the digest.
func forgotten(v *volume) string {
	id := text(v.ID)
	shown, _, _ := strings.Cut(v.Name, "-"+id)
	if cut := strings.LastIndexByte(shown, '-'); cut > 0 {
		shown = shown[:cut]
	}
	return strings.TrimRight(shown[:min(len(shown), mostName-len(id)-1)], "-_.") + "-" + id
}

func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// changing carries out a change of a volume when no other of this process is under way, and again while Hetzner is too busy.
func (p *Provider) changing(ctx context.Context, id string, change func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, _, err := p.volumes.Lock(ctx, id)
	if err != nil {
		return fmt.Errorf("%w: another change of volume %s is under way in this process, and the call's time is over: %w", providers.ErrBusy, id, err)
	}
	defer unlock()
	retry := pace.Backoff{Most: 4 * time.Second}
	for {
		err := change(ctx)
		if !errors.Is(err, providers.ErrBusy) {
			return err
		}
		if over := retry.Wait(ctx); over != nil {
			return fmt.Errorf("%w: %w", err, over)
		}
	}
}
