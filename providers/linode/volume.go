package linode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/rest"
)

const gib = providers.GiB // what Linode's documents call a GB of a volume: its device has so many bytes

const (
	mostPerPage     = 500
	maxAlternatives = 50 // names in one filter, which is a header
)

// list returns all volumes of the account, in any region, that match a filter ("Filtering and sorting"), the oldest first.
func (p *Provider) list(ctx context.Context, filter map[string]any) ([]sdk.Volume, error) {
	text, err := json.Marshal(filter)
	if err != nil {
		return nil, err
	}
	all, err := rest.Pages("Linode", func(v sdk.Volume) int { return v.ID }, func(n int) ([]sdk.Volume, int, bool, error) {
		opts := &sdk.ListOptions{PageOptions: &sdk.PageOptions{Page: n}, PageSize: mostPerPage, Filter: string(text)}
		volumes, err := call(ctx, p, "the question for volumes", func(ctx context.Context) ([]sdk.Volume, error) {
			return p.api.ListVolumes(ctx, opts)
		}, func([]sdk.Volume) bool { return opts.Pages > 0 }) // an empty list has a page, too
		if n > 1 && errors.Is(err, providers.ErrNotFound) {
			return nil, -1, false, nil
		}
		return volumes, opts.Results, n >= opts.Pages, err
	})
	slices.SortFunc(all, func(a, b sdk.Volume) int { return a.ID - b.ID })
	return all, err
}

// named looks volumes up by the digests of their names, in all regions.
func (p *Provider) named(ctx context.Context, names []string) (map[string][]sdk.Volume, error) {
	alternatives := make([]map[string]any, len(names))
	for i, name := range names {
		alternatives[i] = map[string]any{"tags": keyTag(p.keyOf(name))}
	}
	all, err := p.list(ctx, map[string]any{"+or": alternatives})
	found := make(map[string][]sdk.Volume)
	for _, name := range names {
		for _, v := range all {
			if slices.ContainsFunc(v.Tags, func(tag string) bool { return strings.EqualFold(tag, keyTag(p.keyOf(name))) }) {
				found[name] = append(found[name], v)
			}
		}
	}
	return found, err
}

func (p *Provider) rivals(ctx context.Context, name string) ([]sdk.Volume, error) {
	found, err := p.named(ctx, []string{name})
	return found[name], err
}

func (p *Provider) all(ctx context.Context) ([]sdk.Volume, error) {
	return p.list(ctx, map[string]any{"tags": p.clusterTag()})
}

// known returns the volumes with any of blockvol's tags. A filter asks for whole tags.
func (p *Provider) known(ctx context.Context) ([]sdk.Volume, error) {
	all, err := p.list(ctx, map[string]any{})
	return slices.DeleteFunc(all, func(v sdk.Volume) bool {
		return len(without(without(without(v.Tags, markPrefix), recordPrefix), formerPrefix)) == len(v.Tags)
	}), err
}

// get returns a volume by its id, whoever it belongs to.
func (p *Provider) get(ctx context.Context, id string) (sdk.Volume, error) {
	n := number(id)
	v, err := call(ctx, p, "the question for volume "+id, func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.GetVolume(ctx, n)
	}, func(v *sdk.Volume) bool { return v.ID == n })
	if err != nil {
		return sdk.Volume{}, err
	}
	return *v, nil
}

// show translates Linode's description of a volume.
func (p *Provider) show(from sdk.Volume) managed.Disk[sdk.Volume] {
	is := p.identity(from.Tags)
	former, _ := labels.UnpackTags(formerPrefix, from.Tags)
	rec, damaged := recordOf(from.Tags)
	if damaged != nil {
		damaged = fmt.Errorf("volume %q (%d): %w", is.name, from.ID, damaged)
	}
	switch {
	case is.marked && !is.whole:
		damaged = fmt.Errorf("volume %d (%s) has some tags of a volume of a cluster (%s…), but not all: somebody has changed them: put them right, or take them all away", from.ID, p.rest.Clean(from.Label), markPrefix)
	case from.Status == sdk.VolumeContactSupport && damaged == nil:
		damaged = fmt.Errorf("volume %d is %q in Linode's words: open a support ticket, or remove the volume", from.ID, from.Status)
	}
	d := managed.Disk[sdk.Volume]{
		Volume: providers.Volume{
			ID: strconv.Itoa(from.ID), Name: is.name, Size: int64(from.Size) * gib, Zone: from.Region, Serial: from.Label, Record: rec,
			Details: map[string]string{"zone": from.Region, "encrypted": strconv.FormatBool(from.Encryption == "enabled")},
		},
		Cluster: is.cluster, Former: managed.Former{Cluster: former[textCluster], Name: former[textName]}, Marked: is.marked, Damaged: damaged, Native: from,
		Creating: from.Status == sdk.VolumeCreating, Resizing: from.Status == sdk.VolumeResizing,
	}
	if from.LinodeID != nil && *from.LinodeID != 0 {
		d.Attachment = providers.Attachment{Node: strconv.Itoa(*from.LinodeID), State: providers.Attached}
	}
	if from.Created != nil {
		d.CreatedAt = from.Created.UTC()
	}
	return d
}

// retag replaces a volume's tags, checks that they are stored, and returns the volume as the answer shows it.
//
// Linode can neither change single tags, nor make a change conditional on the tags before it. In this process changes of a volume run
// one after another. But if two nodes change the tags of one volume at the same moment, the second may overwrite the first, and a
// write that is repeated after a lost answer may undo one in between; both report success. The driver marks a volume on the node that
// holds it. So that needs a mark, adopt or forget by hand on one node, while another changes the volume.
func (p *Provider) retag(ctx context.Context, v sdk.Volume, tags []string) (sdk.Volume, error) {
	if sameTags(tags, v.Tags) {
		return v, nil
	}
	now, err := call(ctx, p, fmt.Sprintf("the request to tag volume %d", v.ID), func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.UpdateVolume(ctx, v.ID, sdk.VolumeUpdateOptions{Tags: &tags})
	}, func(now *sdk.Volume) bool { return now.ID == v.ID })
	switch {
	case err != nil:
		return v, err
	case !sameTags(tags, now.Tags):
		return v, fmt.Errorf("not all of the tags of volume %d have been stored by Linode: see whether the token's user may have tags", v.ID)
	}
	return *now, nil
}

func (p *Provider) mark(ctx context.Context, d managed.Disk[sdk.Volume], key, value string) error {
	rec, err := recordOf(d.Native.Tags)
	if err != nil {
		return d.Damaged
	}
	rec[key] = value
	_, err = p.retag(ctx, d.Native, append(without(d.Native.Tags, recordPrefix), recordTags(rec)...))
	return err
}

// claim gives a volume the tags of one of ours. Its label stays.
func (p *Provider) claim(ctx context.Context, d managed.Disk[sdk.Volume], spec providers.Spec) (sdk.Volume, error) {
	own, err := operatorTags(spec.Tags)
	if err != nil {
		return d.Native, err
	}
	rec := maps.Clone(d.Record)
	maps.Copy(rec, spec.Record)
	tags := slices.Concat(without(without(without(d.Native.Tags, recordPrefix), markPrefix), formerPrefix), p.marks(spec.Name), recordTags(rec))
	for _, tag := range own {
		if !slices.ContainsFunc(tags, func(t string) bool { return strings.EqualFold(t, tag) }) {
			tags = append(tags, tag)
		}
	}
	return p.retag(ctx, d.Native, tags)
}

func (p *Provider) release(ctx context.Context, d managed.Disk[sdk.Volume]) error {
	tags := without(without(d.Native.Tags, markPrefix), formerPrefix)
	if d.Former.Name != "" {
		tags = append(tags, labels.PackTags(formerPrefix, map[string]string{textCluster: d.Former.Cluster, textName: d.Former.Name}, mostTag)...)
	}
	_, err := p.retag(ctx, d.Native, tags)
	return err
}

func (p *Provider) destroy(ctx context.Context, d managed.Disk[sdk.Volume]) error {
	return p.do(ctx, "the request to delete volume "+d.ID, func(ctx context.Context) error { return p.api.DeleteVolume(ctx, d.Native.ID) })
}
