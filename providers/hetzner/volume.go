package hetzner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/rest"
)

const gib = providers.GiB

// perPage is the largest page (API reference, "Pagination").
const perPage = 50

// list returns all volumes that match a filter of the API, or all if its value is empty.
func (p *Provider) list(ctx context.Context, filter, value string) ([]*volume, error) {
	asked := time.Now()
	all, err := rest.Pages("Hetzner Cloud", func(v *volume) int64 { return v.ID }, func(n int) ([]*volume, int, bool, error) {
		query := url.Values{"page": {strconv.Itoa(n)}, "per_page": {strconv.Itoa(perPage)}, "sort": {"id:asc"}}
		if value != "" {
			query.Set(filter, value)
		}
		answer, err := ask(ctx, p, "the request for a list of volumes", http.MethodGet, "/volumes?"+query.Encode(), nil, func(page *volumePage) bool { return page.Meta.Pagination != nil })
		if err != nil {
			return nil, 0, false, err
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

func (p *Provider) saw(v *volume, asked time.Time) { p.protected.Put(v.ID, asked, v.Protection.Delete) }

// named looks in all locations of the project.
func (p *Provider) named(ctx context.Context, names []string) (map[string][]*volume, error) {
	byKey, keys := make(map[string]string, len(names)), make([]string, len(names))
	for i, name := range names {
		keys[i] = p.nameOf(name)
		byKey[keys[i]] = name
	}
	slices.Sort(keys)
	all, err := p.list(ctx, "label_selector", keyLabel+" in ("+strings.Join(keys, ",")+")")
	found := make(map[string][]*volume)
	for _, v := range all {
		name := byKey[v.Labels[keyLabel]]
		found[name] = append(found[name], v)
	}
	return found, err
}

func (p *Provider) all(ctx context.Context) ([]*volume, error) {
	return p.list(ctx, "label_selector", p.ours())
}

// known returns the volumes with any of blockvol's labels. No selector asks for the beginning of a label.
func (p *Provider) known(ctx context.Context) ([]*volume, error) {
	all, err := p.list(ctx, "label_selector", "")
	return slices.DeleteFunc(all, func(v *volume) bool { return len(cut(v.Labels, prefix)) == 0 }), err
}

// show translates Hetzner's description of a volume.
func (p *Provider) show(from *volume) managed.Disk[*volume] {
	is := read(from.Labels)
	d := managed.Disk[*volume]{
		Volume: providers.Volume{
			ID: text(from.ID), Name: is.name, Size: int64(from.Size) * gib, Zone: from.Location.Name, CreatedAt: from.Created.UTC(),
			Serial: text(from.ID), Record: is.record, Details: map[string]string{"zone": from.Location.Name},
		},
		Cluster: is.cluster, Former: is.former, Marked: is.owned, Damaged: damaged(from, is.unreadable), Creating: from.Status == volumeCreating, Native: from,
	}
	if is.cluster == p.cluster && is.key != p.nameOf(is.name) {
		d.Name = ""
	}
	if from.Server != nil {
		d.Attachment = providers.Attachment{Node: text(*from.Server), State: providers.Attached}
	}
	if from.Status != volumeAvailable {
		d.Unready = from.Status
	}
	return d
}

// get asks for a volume by its id, whoever it belongs to.
func (p *Provider) get(ctx context.Context, id string) (*volume, error) {
	asked := time.Now()
	answer, err := ask(ctx, p, "the question for volume "+id, http.MethodGet, volumePath(id), nil, isVolume(id))
	switch {
	case errors.Is(err, providers.ErrNotFound):
		return nil, fmt.Errorf("%w: Hetzner Cloud has no volume %s in this project", providers.ErrNotFound, id)
	case err != nil:
		return nil, err
	}
	p.saw(&answer.Volume, asked)
	return &answer.Volume, nil
}

func isVolume(id string) func(*volumeAnswer) bool {
	return func(a *volumeAnswer) bool { return text(a.Volume.ID) == id }
}

// remove deletes a volume.
func (p *Provider) remove(ctx context.Context, d managed.Disk[*volume]) error {
	err := p.unprotectAndRemove(ctx, d)
	if err == nil || errors.Is(err, providers.ErrNotFound) || errors.Is(err, providers.ErrBusy) || !isRefusal(err) {
		return err
	}
	// The reference does not say with which error an attached volume is refused: if it has a holder, that is the reason.
	if now, look := p.get(ctx, d.ID); look == nil && now.Server != nil {
		_ = p.protect(ctx, d.ID, true) // it is in use after all; the next attach sees to it, if this does not
		return &providers.HeldError{Volume: d.ID, Node: text(*now.Server)}
	}
	return err
}

func (p *Provider) unprotectAndRemove(ctx context.Context, d managed.Disk[*volume]) error {
	protected := d.Native.Protection.Delete
	for again := true; ; again = false {
		if protected {
			if err := p.protect(ctx, d.ID, false); err != nil {
				return err
			}
		}
		err := p.removeOnce(ctx, d.ID)
		if !again || !errors.Is(err, errProtected) {
			return err
		}
		protected = true // since it was read
	}
}

// removeOnce deletes a volume. Hetzner's only success is "no content".
func (p *Provider) removeOnce(ctx context.Context, id string) error {
	request := "the request to delete volume " + id
	status, _, _, err := p.send(ctx, http.MethodDelete, volumePath(id), nil)
	switch {
	case err != nil:
		return p.explain(ctx, request, err)
	case status != http.StatusNoContent:
		return p.client.Foreign(ctx, request)
	}
	return nil
}

// protect protects the volume from deletion, or removes the protection.
func (p *Provider) protect(ctx context.Context, id string, on bool) error {
	request := "the request to protect volume " + id + " from deletion"
	if !on {
		request = "the request to lift the protection of volume " + id
	}
	a, err := p.change(ctx, request, id, "change_protection", schema.VolumeActionChangeProtectionRequest{Delete: &on})
	if err != nil {
		return err
	}
	if err := p.await(ctx, "change the protection of volume "+id, a); err != nil {
		return err
	}
	p.protected.Put(number(id), time.Now(), on)
	return nil
}

// claim gives an existing volume the labels and the name of one of ours. If another volume gets the same name at that moment, Hetzner
// refuses one of them. Two nodes that adopt one disk at once, under two names or for two clusters, may both succeed: then the last
// one counts, and the other finds no volume.
func (p *Provider) claim(ctx context.Context, d managed.Disk[*volume], spec providers.Spec) (*volume, error) {
	all := p.labelsFor(d.Native.Labels, spec)
	if maps.Equal(all, d.Native.Labels) {
		return d.Native, nil
	}
	now, err := p.update(ctx, d.ID, p.nameOf(spec.Name), all)
	if errors.Is(err, errTaken) {
		return nil, p.taken(ctx, spec.Name, err)
	}
	return now, err
}

// release removes cluster and name from the labels, and renames the volume, so that another can have its name at Hetzner. It removes
// the protection first: if this process ends in between, the next call continues.
func (p *Provider) release(ctx context.Context, d managed.Disk[*volume]) error {
	if d.Native.Protection.Delete {
		if err := p.protect(ctx, d.ID, false); err != nil {
			return err
		}
	}
	left := maps.Clone(d.Native.Labels)
	for _, mark := range []string{labelCluster, labelName, labelKey} {
		take(left, prefix, mark)
	}
	put(left, prefix, map[string]string{labelFormer + labelCluster: d.Former.Cluster, labelFormer + labelName: d.Former.Name})
	_, err := p.update(ctx, d.ID, forgotten(d.Native), left)
	return err
}

// forgotten returns the name of a forgotten volume: its name, with its id in place of the digest.
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
