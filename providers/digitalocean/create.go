package digitalocean

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

var sizes = providers.Sizes{Cloud: "DigitalOcean", Least: 1, Most: 16 << 10}

// mostTries bounds the search for a free name in DigitalOcean: forgotten disks may have the first ones.
const mostTries = 100

// justAsked is how long create relies on a lookup that found no volume of the name, see managed.Cloud.AbsentFor. If a volume was
// created since, DigitalOcean refuses the request; if one was adopted since, createOnce finds it.
const justAsked = 5 * time.Second

// order translates a specification into a request.
func (p *Provider) order(ctx context.Context, spec providers.Spec, gibs int64, region string) (*godo.VolumeCreateRequest, error) {
	rec := spec.Record
	var tags []string
	if spec.Snapshot != "" {
		from, size, err := p.source(ctx, spec, gibs, region)
		if err != nil {
			return nil, err
		}
		gibs, rec, tags = size, from.Record, textTags(textSnapshot, spec.Snapshot)
		if gibs > int64(from.Native.MinDiskSize) {
			tags = append(tags, textTags(textSize, strconv.FormatInt(gibs, 10))...)
		}
	}
	if gibs == 0 {
		return nil, sizes.Refuse(0)
	}
	tags = slices.Concat(tags, textTags(textCluster, p.cluster()), textTags(textName, spec.Name), recordTags(rec), operatorTags(spec.Tags))
	return &godo.VolumeCreateRequest{
		Region: region, Description: fmt.Sprintf("%s%q of cluster %q", described, sanitize.Clip(spec.Name), sanitize.Clip(p.cluster())),
		SizeGigaBytes: gibs, SnapshotID: spec.Snapshot, Tags: tags, // and no file system: an image of DigitalOcean's would mount it by itself
	}, nil
}

// create creates a volume under the name of the turn. DigitalOcean does so at once.
func (p *Provider) create(ctx context.Context, spec providers.Spec, gib int64, turn int) (godo.Volume, error) {
	here, err := p.Node(ctx)
	if err != nil {
		return godo.Volume{}, err
	}
	if spec.Zone != "" && spec.Zone != here.Zone {
		return godo.Volume{}, fmt.Errorf("%w: zone %q: on DigitalOcean volumes are made in the region of the node, which is %s", providers.ErrInvalid, spec.Zone, here.Zone)
	}
	in, err := p.order(ctx, spec, gib, here.Zone)
	if err != nil {
		return godo.Volume{}, err
	}
	in.Name = p.cloudName(spec.Name, turn)
	return p.createOnce(ctx, in, spec.Name)
}

func (p *Provider) taken(_ context.Context, name string, _ error) error {
	return fmt.Errorf("%w: more than %d disks that blockvol has forgotten are called as a volume named %q would be: adopt or delete some", providers.ErrInvalid, mostTries, name)
}

// await enlarges a volume that was made from a smaller snapshot, whichever node made it: at first it has the snapshot's size.
func (p *Provider) await(ctx context.Context, d managed.Disk[godo.Volume]) (godo.Volume, error) {
	err := p.Change(ctx, d.ID, func() error { return p.resize(ctx, d, identityOf(d.Native.Tags).size) })
	if err != nil && !errors.Is(err, providers.ErrInvalid) { // otherwise another may have done so
		return godo.Volume{}, err
	}
	return p.get(ctx, d.ID)
}

func (p *Provider) createOnce(ctx context.Context, in *godo.VolumeCreateRequest, name string) (godo.Volume, error) {
	var v *godo.Volume
	err := p.queue.Do(ctx, "name "+in.Name, func(ctx context.Context) (err error) {
		v, _, err = p.api.Storage.CreateVolume(ctx, in)
		return p.explain(ctx, fmt.Sprintf("the request to make volume %q", in.Name), err, v != nil && v.ID != "")
	})
	switch {
	case isMissing(err): // the snapshot
		return godo.Volume{}, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	case isConflict(err): // another node has just made it, or a forgotten disk has the name
		return godo.Volume{}, fmt.Errorf("%w: %w", managed.ErrTaken, err)
	case err != nil:
		return godo.Volume{}, err
	}
	// DigitalOcean gives its name of the volume to one node. But another node may meanwhile have adopted a volume under the same name
	// of ours, or made one under a later try. Each node looks after its volume has the tag, so of two nodes the later sees both, and
	// gives up the volume that it has just made. The only volume with the tag has no rival; otherwise the list shows.
	if p.isNamed(*v, name) && v.Name == in.Name {
		if count, id, err := p.countTagged(ctx, name); err == nil && count == 1 && id == v.ID {
			p.call(name, in.Name)
			return *v, nil
		}
	}
	list, err := p.region(ctx, in.Region)
	if err != nil {
		return godo.Volume{}, err
	}
	at := slices.IndexFunc(list, func(listed godo.Volume) bool { return listed.ID == v.ID })
	if at < 0 || !p.isNamed(list[at], name) {
		if at >= 0 && hidden(list[at]) != nil {
			return godo.Volume{}, hidden(list[at])
		}
		return godo.Volume{}, fmt.Errorf("%w: DigitalOcean has made volume %s (%s), and does not show it as it was asked for yet", providers.ErrBusy, v.ID, in.Name)
	}
	for _, other := range list {
		if other.ID != v.ID && p.isNamed(other, name) {
			return p.giveUp(ctx, list[at], name)
		}
	}
	// Under another name than that of the first try, only the tag finds it, see tagged.
	if tag := textTags(textName, name)[0]; in.Name != p.cloudName(name, 0) && !slices.Contains(list[at].Tags, tag) {
		if err := p.disown(ctx, list[at]); err != nil {
			return godo.Volume{}, err
		}
		return godo.Volume{}, inOtherCapitals(tag, fmt.Errorf("%w: volume %s (%s), made for it, is blank and nobody's: delete it", providers.ErrInvalid, v.ID, in.Name))
	}
	p.call(name, in.Name)
	return list[at], nil
}

// giveUp releases a volume that has just been made although there is another of that name, and returns the other. The disk stays:
// only Delete deletes.
func (p *Provider) giveUp(ctx context.Context, v godo.Volume, name string) (godo.Volume, error) {
	if err := p.disown(ctx, v); err != nil {
		return godo.Volume{}, err
	}
	if p.cfg.Log != nil {
		p.cfg.Log.WithField("volume", name).WithField("id", v.ID).Warn("Two nodes made this volume at the same moment: the disk of that id is blank and nobody's, delete it")
	}
	retry := pause.Backoff{Most: time.Second}
	if err := retry.Wait(ctx); err != nil { // the other node may give up its volume, too
		return godo.Volume{}, err
	}
	other, err := p.Lookup(ctx, name)
	if errors.Is(err, providers.ErrNotFound) {
		return godo.Volume{}, fmt.Errorf("%w: several nodes made a volume named %q at the same moment, and all gave it up", providers.ErrBusy, name)
	}
	return other.Native, err
}
