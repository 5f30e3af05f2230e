package digitalocean

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

const gib = providers.GiB

// described begins the description of each volume that blockvol makes.
const described = "blockvol volume "

// longestName is the longest name of a volume that blockvol makes. DigitalOcean accepts 64 characters, but the name is the device's
// serial, which QEMU may cut to 36.
const longestName = 36

// cloudName is a volume's name in DigitalOcean at the given try: forgotten disks may have those before it.
func (p *Provider) cloudName(name string, try int) string {
	return labels.NameAt(try, p.cluster(), name, longestName)
}

func (p *Provider) cluster() string { return p.cfg.Cluster }

// isNamed reports whether a volume is this cluster's of that name.
func (p *Provider) isNamed(v godo.Volume, name string) bool {
	is := identityOf(v.Tags)
	return is.cluster == p.cluster() && is.name == name
}

// hidden returns an error for a volume that blockvol has made and that is shown without tags, nil for any other. A token without the
// scope tag:read sees no tags, so it may be the volume that is looked for.
func hidden(v godo.Volume) error {
	if len(v.Tags) > 0 || !strings.HasPrefix(v.Description, described) {
		return nil
	}
	return fmt.Errorf("%w: DigitalOcean shows volume %s, which calls itself %q, without its tags: give the token the scope tag:read; if somebody took the tags away, take the volume back with the option volume-id=%s", managed.ErrUnmarked, v.ID, sanitize.Clip(v.Description), v.ID)
}

// named looks for one name in this node's region by the volume's name in DigitalOcean, then by the tag of the name. It looks for
// several names, or one that is not settled so, in the list of the region's volumes.
func (p *Provider) named(ctx context.Context, names []string) (map[string][]godo.Volume, error) {
	here, err := p.Node(ctx)
	if err != nil {
		return nil, err
	}
	if len(names) == 1 {
		name := names[0]
		list, shown, err := p.api.Storage.ListVolumes(ctx, &godo.ListVolumeParams{Region: here.Zone, Name: p.called(name)})
		if err := p.explain(ctx, fmt.Sprintf("the request for the volume named %q", p.called(name)), err, shown != nil && shown.Meta != nil); err != nil {
			return nil, err
		}
		for _, v := range list {
			if p.isNamed(v, name) || hidden(v) != nil {
				return map[string][]godo.Volume{name: {v}}, nil //nolint:nilerr // one that is hidden is refused when it is described
			}
		}
		if v, settled := p.tagged(ctx, name); settled {
			if v == nil {
				return nil, nil
			}
			p.call(name, v.Name)
			return map[string][]godo.Volume{name: {*v}}, nil
		}
	}
	list, err := p.region(ctx, here.Zone)
	if err != nil {
		return nil, err
	}
	found := make(map[string][]godo.Volume)
	for _, name := range names {
		for _, v := range list {
			if p.isNamed(v, name) {
				found[name] = append(found[name], v)
			}
		}
		if len(found[name]) > 0 {
			p.call(name, found[name][0].Name)
			continue
		}
		found[name] = slices.DeleteFunc(slices.Clone(list), func(v godo.Volume) bool { return v.Name != p.cloudName(name, 0) || hidden(v) == nil })
	}
	return found, nil
}

// rivals returns the volumes of the region that have the name, or may have it.
func (p *Provider) rivals(ctx context.Context, name string) ([]godo.Volume, error) {
	all, err := p.all(ctx)
	return slices.DeleteFunc(all, func(v godo.Volume) bool {
		return !p.isNamed(v, name) && (v.Name != p.cloudName(name, 0) || hidden(v) == nil)
	}), err
}

// all returns all volumes of this node's region.
func (p *Provider) all(ctx context.Context) ([]godo.Volume, error) {
	here, err := p.Node(ctx)
	if err != nil {
		return nil, err
	}
	return p.region(ctx, here.Zone)
}

// known returns the volumes of this node's region that have any of blockvol's tags, or call themselves blockvol's.
func (p *Provider) known(ctx context.Context) ([]godo.Volume, error) {
	all, err := p.all(ctx)
	return slices.DeleteFunc(all, func(v godo.Volume) bool {
		return hidden(v) == nil && !slices.ContainsFunc(v.Tags, isOwnTag)
	}), err
}

// tagged looks this cluster's volume of that name up by the tag of the name, in two calls however many volumes there are; v is nil
// if there is none. It finds adopted volumes, which have another name in DigitalOcean. It is not settled if several volumes of the
// account have the tag, such as those of other clusters and regions and forgotten disks, or if the token may not read tags.
//
// The request has the tag in lower case. DigitalOcean does not find a tag that somebody made by hand with capitals; no volume of
// ours gets such a tag: see tag and createOnce.
func (p *Provider) tagged(ctx context.Context, name string) (v *godo.Volume, settled bool) {
	count, id, err := p.countTagged(ctx, name)
	if err != nil || count == 0 {
		return nil, err == nil
	}
	if count > 1 {
		return nil, false
	}
	only, err := p.get(ctx, id)
	here, whereErr := p.Node(ctx)
	switch {
	case err != nil || whereErr != nil:
		return nil, false
	case p.isNamed(only, name) && (only.Region == nil || only.Region.Slug == here.Zone):
		return &only, true
	}
	return nil, true
}

// countTagged returns how many volumes of the account have the first tag of the name, and the id of the last that got it.
func (p *Provider) countTagged(ctx context.Context, name string) (count int, id string, err error) {
	tag := textTags(textName, name)[0]
	found, _, err := p.api.Tags.Get(ctx, tag)
	err = p.explain(ctx, "the request for tag "+tag, err, found != nil && found.Resources != nil && found.Resources.Volumes != nil)
	switch {
	case isMissing(err): // no volume has ever had it
		return 0, "", nil
	case err != nil:
		return 0, "", err
	}
	return found.Resources.Volumes.Count, path.Base(found.Resources.Volumes.LastTaggedURI), nil
}

// called returns the volume's name in DigitalOcean, as far as this process knows.
func (p *Provider) called(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if alias := p.aliases[name]; alias != "" {
		return alias
	}
	return p.cloudName(name, 0)
}

// call remembers the volume's name in DigitalOcean.
func (p *Provider) call(name, called string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.aliases, name)
	if called != p.cloudName(name, 0) {
		p.aliases[name] = called
	}
}

// region returns all volumes of a region, whoever they belong to. To save memory, their Region has the slug only.
func (p *Provider) region(ctx context.Context, region string) ([]godo.Volume, error) {
	return pages(ctx, p, "the request for the volumes of region "+region, func(v godo.Volume) string { return v.ID }, func(ctx context.Context, page *godo.ListOptions) ([]godo.Volume, *godo.Response, error) {
		list, answer, err := p.api.Storage.ListVolumes(ctx, &godo.ListVolumeParams{Region: region, ListOptions: page})
		slug := &godo.Region{Slug: region}
		for i, v := range list {
			if v.Region != nil && v.Region.Slug == region {
				list[i].Region = slug
			}
		}
		return list, answer, err
	})
}

// show translates DigitalOcean's description of a volume.
func (p *Provider) show(from godo.Volume) managed.Disk[godo.Volume] {
	is := identityOf(from.Tags)
	d := managed.Disk[godo.Volume]{
		Volume: providers.Volume{
			ID: from.ID, Size: from.SizeGigaBytes * gib, CreatedAt: from.CreatedAt.UTC(), Serial: from.Name,
			Snapshot: is.snapshot, Record: recordOf(from.Tags), Details: map[string]string{"cloud-name": from.Name},
		},
		Cluster: is.cluster, Former: managed.Former{Cluster: is.former, Name: is.name}, Marked: is.owned(), Damaged: hidden(from), Creating: is.size > from.SizeGigaBytes, Native: from,
	}
	if d.Marked {
		d.Name = is.name
	}
	if is.cluster == p.cluster() && is.name == "" {
		d.Damaged = fmt.Errorf("volume %s (%s) is of this cluster, but the name in its tags cannot be read: take the tags that begin with %s from it, and adopt it with volume-id=%s", from.ID, from.Name, tagPrefix, from.ID)
	}
	if from.Region != nil {
		d.Zone = from.Region.Slug
	}
	if len(from.DropletIDs) > 0 {
		d.Attachment = providers.Attachment{Node: strconv.Itoa(from.DropletIDs[0]), State: providers.Attached}
	}
	return d
}

var volumeID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// get asks for a volume by its id, whoever it belongs to, wherever it is.
func (p *Provider) get(ctx context.Context, id string) (godo.Volume, error) {
	v, found, err := p.byID.Get(ctx, id)
	if err == nil && !found {
		err = fmt.Errorf("%w: DigitalOcean has no volume %s", providers.ErrNotFound, id)
	}
	return v, err
}

func (p *Provider) askIDs(ctx context.Context, ids []string) (map[string]godo.Volume, error) {
	found := make(map[string]godo.Volume)
	if len(ids) > 1 {
		here, err := p.Node(ctx)
		if err != nil {
			return nil, err
		}
		list, err := p.region(ctx, here.Zone)
		if err != nil {
			return nil, err
		}
		for _, v := range list {
			if slices.Contains(ids, v.ID) {
				found[v.ID] = v
			}
		}
	}
	for _, id := range ids {
		if _, known := found[id]; known {
			continue
		}
		v, _, err := p.api.Storage.GetVolume(ctx, id)
		err = p.explain(ctx, "the request for volume "+id, err, v != nil && v.ID == id)
		if err != nil && !isMissing(err) {
			return nil, err
		} else if err == nil {
			found[id] = *v
		}
	}
	return found, nil
}

func (p *Provider) remove(ctx context.Context, d managed.Disk[godo.Volume]) error {
	answer, err := p.api.Storage.DeleteVolume(ctx, d.ID)
	err = p.done(ctx, "the request to delete volume "+d.ID, answer, err)
	if isConflict(err) {
		return fmt.Errorf("%w: %w", managed.ErrAttached, err)
	}
	return found(err)
}

// release removes the cluster from the tags. The name stays until the disk gets another, so that a disk of blockvol's always has a
// tag. An attach by another node may be under way and not shown yet: then that node finds that the volume is no cluster's.
func (p *Provider) release(ctx context.Context, d managed.Disk[godo.Volume]) error {
	if d.Former.Cluster != "" {
		if err := p.tag(ctx, d.ID, textTags(textFormer, d.Former.Cluster)); err != nil {
			return err
		}
	}
	return p.disown(ctx, d.Native)
}

// disown makes a volume no cluster's.
func (p *Provider) disown(ctx context.Context, v godo.Volume) error {
	return p.untag(ctx, v.ID, tagsOf(v, textCluster))
}

// tagsOf returns the volume's tags with a part of that text.
func tagsOf(v godo.Volume, key string) []string {
	return slices.DeleteFunc(slices.Clone(v.Tags), func(tag string) bool { return textOf(tag) != key })
}

// claim gives an existing volume the tags of one of ours. The tag of the cluster comes last: until then the volume is no cluster's.
func (p *Provider) claim(ctx context.Context, d managed.Disk[godo.Volume], spec providers.Spec) (godo.Volume, error) {
	here, err := p.Node(ctx)
	if err != nil {
		return d.Native, err
	}
	v := d.Native
	if d.Zone != "" && d.Zone != here.Zone {
		return v, fmt.Errorf("%w: %s is in region %s, and this node in region %s, where it cannot be attached", providers.ErrInvalid, d.ID, d.Zone, here.Zone)
	}
	wanted := append(textTags(textName, spec.Name), textTags(textCluster, p.cluster())...)
	stale := slices.DeleteFunc(slices.Concat(tagsOf(v, textCluster), tagsOf(v, textName), tagsOf(v, textFormer)), func(tag string) bool {
		return slices.Contains(wanted, strings.ToLower(tag))
	})
	if err := p.untag(ctx, d.ID, stale); err != nil {
		return v, err
	}
	for _, key := range slices.Sorted(maps.Keys(spec.Record)) {
		if err := p.mark(ctx, d, key, spec.Record[key]); err != nil {
			return v, err
		}
	}
	missing := slices.DeleteFunc(append(operatorTags(spec.Tags), wanted...), func(tag string) bool {
		return slices.ContainsFunc(v.Tags, func(is string) bool { return strings.EqualFold(is, tag) })
	})
	if err := p.tag(ctx, d.ID, missing); err != nil {
		return v, err
	}
	if v, err = p.get(ctx, d.ID); err != nil {
		return v, err
	}
	if err := hidden(v); err != nil {
		return v, err
	}
	if !p.isNamed(v, spec.Name) {
		return v, errors.Join(fmt.Errorf("%w: another node adopts volume %s at this moment", providers.ErrBusy, d.ID), p.disown(ctx, v))
	}
	p.call(spec.Name, v.Name)
	return v, nil
}
