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
	"time"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/rest"
)

const gib = 1 << 30 // what Linode's documents call a GB of a volume: its device has so many bytes

const (
	mostPerPage     = 500
	maxAlternatives = 50 // names in one filter, which is a header
)

// list returns all volumes of the account, in any region, that meet a filter ("Filtering and sorting").
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
	slices.SortFunc(all, byID)
	return all, err
}

func (p *Provider) askByKey(ctx context.Context, keys []string) (map[string][]sdk.Volume, error) {
	alternatives := make([]map[string]any, len(keys))
	for i, key := range keys {
		alternatives[i] = map[string]any{"tags": keyTag(key)}
	}
	all, err := p.list(ctx, map[string]any{"+or": alternatives})
	found := make(map[string][]sdk.Volume)
	for _, key := range keys {
		for _, v := range all {
			if slices.ContainsFunc(v.Tags, func(tag string) bool { return strings.EqualFold(tag, keyTag(key)) }) {
				found[key] = append(found[key], v)
			}
		}
	}
	return found, err
}

// bearing returns the volumes of a name, the oldest first, and when Linode was asked or before.
func (p *Provider) bearing(ctx context.Context, name string) ([]sdk.Volume, time.Time, error) {
	asked := time.Now()
	all, _, err := p.byKey.Get(ctx, p.keyOf(name))
	if err != nil {
		return nil, asked, err
	}
	for _, v := range all {
		if is := p.identity(v.Tags); !is.whole || is.name != name {
			return nil, asked, fmt.Errorf("volume %d bears the key of the name %q, but not all of its other tags (%s…): somebody has changed them: put them right, or take them all away", v.ID, name, markPrefix)
		}
	}
	return all, asked, nil
}

// find returns the one volume of a name. Errors: ErrNotFound, ErrAmbiguous.
func (p *Provider) find(ctx context.Context, name string) (sdk.Volume, time.Time, error) {
	all, asked, err := p.bearing(ctx, name)
	if err != nil {
		return sdk.Volume{}, asked, err
	}
	v, err := p.bearers().One(name, all)
	return v, asked, err
}

func (p *Provider) bearers() providers.Bearers[sdk.Volume] {
	return providers.Bearers[sdk.Volume]{
		Cloud: "Linode", Cluster: p.cluster, Take: "the tags that begin with " + markPrefix,
		Show: func(v sdk.Volume) string { return "volume " + strconv.Itoa(v.ID) },
	}
}

// Find looks a volume up by a digest of its name, in all regions.
func (p *Provider) Find(ctx context.Context, name string) (*providers.Volume, error) {
	v, asked, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.describe(&v, asked)
}

// List returns the cluster's volumes. Those that share a name, or whose tags cannot be read, are left out, and the error names
// them.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	asked := time.Now()
	all, err := p.list(ctx, map[string]any{"tags": p.clusterTag()})
	if err != nil {
		return nil, err
	}
	byName := make(map[string][]sdk.Volume)
	var problems []error
	for _, v := range all {
		switch is := p.identity(v.Tags); {
		case is.whole && is.cluster == p.cluster:
			byName[is.name] = append(byName[is.name], v)
		case !is.whole:
			problems = append(problems, fmt.Errorf("volume %d (%s) bears some tags of a volume of a cluster (%s…), but not all: somebody has changed them: put them right, or take them all away", v.ID, p.rest.Clean(v.Label), markPrefix))
		}
	}
	return p.bearers().List(byName, func(v sdk.Volume) (*providers.Volume, error) { return p.describe(&v, asked) }, problems...)
}

// describe puts Linode's description of a volume of ours, asked for at that time, into the contract's words.
func (p *Provider) describe(from *sdk.Volume, asked time.Time) (*providers.Volume, error) {
	is := p.identity(from.Tags)
	rec, err := recordOf(from.Tags)
	if err != nil {
		return nil, fmt.Errorf("volume %q (%d): %w", is.name, from.ID, err)
	}
	p.ours.See(from.ID, asked, true)
	v := &providers.Volume{
		ID:         strconv.Itoa(from.ID),
		Name:       is.name,
		Size:       int64(from.Size) * gib,
		Zone:       from.Region,
		Serial:     from.Label,
		Record:     rec,
		Attachment: p.attachmentOf(from, asked),
		Details:    map[string]string{"zone": from.Region, "encrypted": strconv.FormatBool(from.Encryption == "enabled")},
	}
	if from.Created != nil {
		v.CreatedAt = from.Created.UTC()
	}
	return v, nil
}

// attachmentOf tells who holds a volume, as a read asked at that time shows it.
func (p *Provider) attachmentOf(v *sdk.Volume, asked time.Time) providers.Attachment {
	held := providers.Attachment{}
	if v.LinodeID != nil && *v.LinodeID != 0 {
		held = providers.Attachment{Node: strconv.Itoa(*v.LinodeID), State: providers.Attached}
	}
	if does, _ := p.leaves(v.ID, held.Node, asked); does {
		held.State = providers.Detaching
	}
	return held
}

// get asks Linode for a volume by its id, whoever it belongs to.
func (p *Provider) get(ctx context.Context, id int) (*sdk.Volume, time.Time, error) {
	asked := time.Now()
	v, err := call(ctx, p, fmt.Sprintf("the question for volume %d", id), func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.GetVolume(ctx, id)
	}, func(v *sdk.Volume) bool { return v.ID == id })
	if errors.Is(err, providers.ErrNotFound) {
		p.forget(id, asked)
	}
	return v, asked, err
}

// getOurs is get for a volume of this cluster.
func (p *Provider) getOurs(ctx context.Context, id int) (*sdk.Volume, time.Time, error) {
	v, asked, err := p.get(ctx, id)
	if err != nil {
		return nil, asked, err
	}
	if !p.isOurs(v.Tags) {
		p.forget(id, asked)
		return nil, asked, providers.NotOurs(strconv.Itoa(id))
	}
	return v, asked, nil
}

// retag replaces a volume's tags by what change makes of them; nil leaves them. The volume is as Linode's answer shows it.
//
// Linode has no way to change some tags only, nor to change them only if they are as they were. In this process changes of a
// volume come one after another; but if two nodes change the tags of one volume at the same moment, what the first wrote may be
// gone after the second, and a write that is repeated because its answer did not come may undo one that came in between. Both
// are told of success. The driver marks a volume on the node that holds it, so two nodes do so only where a volume is marked,
// adopted or forgotten by hand on one and by another process at once.
func (p *Provider) retag(ctx context.Context, id int, change func(v *sdk.Volume, asked time.Time) ([]string, error)) (v *sdk.Volume, asked time.Time, err error) {
	err = p.volume.Do(ctx, strconv.Itoa(id), func(ctx context.Context) error {
		var err error
		if v, asked, err = p.get(ctx, id); err != nil {
			return err
		}
		tags, err := change(v, asked)
		if err != nil || tags == nil || sameTags(tags, v.Tags) {
			return err
		}
		v, err = call(ctx, p, fmt.Sprintf("the request to tag volume %d", id), func(ctx context.Context) (*sdk.Volume, error) {
			return p.api.UpdateVolume(ctx, id, sdk.VolumeUpdateOptions{Tags: &tags})
		}, func(v *sdk.Volume) bool { return v.ID == id })
		if err == nil && !sameTags(tags, v.Tags) {
			err = fmt.Errorf("not all of the tags of volume %d have been stored by Linode: see whether the token's user may have tags", id)
		}
		return err
	})
	return v, asked, err
}

// Mark stores one entry of the record, beside the others.
func (p *Provider) Mark(ctx context.Context, id, key, value string) error {
	if err := providers.CheckRecord(providers.Record{key: value}); err != nil {
		return err
	}
	n, err := numberOf(id)
	if err != nil {
		return err
	}
	_, _, err = p.retag(ctx, n, func(v *sdk.Volume, _ time.Time) ([]string, error) {
		if !p.isOurs(v.Tags) {
			return nil, providers.NotOurs(id)
		}
		rec, err := recordOf(v.Tags)
		if err != nil {
			return nil, fmt.Errorf("volume %d: %w", n, err)
		}
		rec[key] = value
		return append(without(v.Tags, recordPrefix), recordTags(rec)...), nil
	})
	return err
}

// Adopt gives an existing volume the tags of one of ours. Its label stays.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	own, err := operatorTags(spec.Tags)
	if err := errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record), err); err != nil {
		return nil, err
	}
	n, err := numberOf(id)
	if err != nil {
		return nil, err
	}
	switch other, _, err := p.find(ctx, spec.Name); {
	case err == nil && other.ID != n:
		return nil, fmt.Errorf("%w: %d cannot be %q: that is the name of volume %d", providers.ErrInvalid, n, spec.Name, other.ID)
	case err != nil && !errors.Is(err, providers.ErrNotFound):
		return nil, err
	}
	v, asked, err := p.retag(ctx, n, func(v *sdk.Volume, asked time.Time) ([]string, error) {
		is, held := p.identity(v.Tags), p.attachmentOf(v, asked)
		again := p.isOurs(v.Tags) && is.name == spec.Name
		switch {
		case again:
		case is.owned:
			return nil, fmt.Errorf("%w: %d is volume %q of cluster %q already: remove it there with reclaim=retain first", providers.ErrInvalid, n, is.name, is.cluster)
		case held.State != providers.Detached:
			return nil, fmt.Errorf("%w: %d is attached to Linode %s: detach it first", providers.ErrInvalid, n, held.Node)
		}
		rec, err := recordOf(v.Tags)
		if err != nil {
			return nil, fmt.Errorf("%w: volume %d: %w", providers.ErrInvalid, n, err)
		}
		maps.Copy(rec, spec.Record)
		tags := slices.Concat(without(without(v.Tags, recordPrefix), markPrefix), p.marks(spec.Name), recordTags(rec))
		for _, tag := range own {
			if !slices.ContainsFunc(tags, func(t string) bool { return strings.EqualFold(t, tag) }) {
				tags = append(tags, tag)
			}
		}
		return tags, nil
	})
	if err != nil {
		return nil, err
	}
	// Another node may have made, or adopted, one of that name at the same moment: this one yields.
	if _, _, err := p.find(ctx, spec.Name); errors.Is(err, providers.ErrAmbiguous) {
		if left := p.yield(ctx, n); left != nil {
			return nil, errors.Join(err, left)
		}
		return nil, fmt.Errorf("%w: another volume has been given the name %q at the same moment", providers.ErrInvalid, spec.Name)
	} else if err != nil {
		return nil, err
	}
	return p.describe(v, asked)
}

// Forget takes cluster and name from the tags; the record stays, and the label.
func (p *Provider) Forget(ctx context.Context, id string) error {
	n, err := numberOf(id)
	if err != nil {
		return err
	}
	_, _, err = p.retag(ctx, n, func(v *sdk.Volume, asked time.Time) ([]string, error) {
		if !p.identity(v.Tags).owned {
			return nil, nil
		}
		if !p.isOurs(v.Tags) {
			return nil, providers.NotOurs(id)
		}
		if held := p.attachmentOf(v, asked); held.State != providers.Detached {
			return nil, &providers.HeldError{Volume: id, Node: held.Node}
		}
		return without(v.Tags, markPrefix), nil
	})
	if err == nil {
		p.forget(n, time.Now())
	}
	return err
}

// Delete destroys the volume. Linode itself refuses one that is attached.
func (p *Provider) Delete(ctx context.Context, id string) error {
	n, err := numberOf(id)
	if err != nil {
		return ctx.Err() // what Linode cannot have is not there
	}
	v, asked, err := p.getOurs(ctx, n)
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if held := p.attachmentOf(v, asked); held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	err = p.destroy(ctx, n)
	if errors.Is(err, errAttached) {
		held := &providers.HeldError{Volume: id}
		if v, asked, err := p.get(ctx, n); err == nil {
			held.Node = p.attachmentOf(v, asked).Node
		}
		return held
	}
	return err
}

// destroy deletes a volume, whatever it is. One that is not there is success.
func (p *Provider) destroy(ctx context.Context, id int) error {
	err := p.do(ctx, fmt.Sprintf("the request to delete volume %d", id), func(ctx context.Context) error { return p.api.DeleteVolume(ctx, id) })
	if err == nil || errors.Is(err, providers.ErrNotFound) {
		p.forget(id, time.Now())
		return nil
	}
	return err
}
