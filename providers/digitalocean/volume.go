package digitalocean

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/quote"
)

const gib = 1 << 30

// described is how the description begins of what blockvol makes.
const described = "blockvol volume "

// longestName is what a volume is called at most that blockvol makes. DigitalOcean takes 64 characters, but of a serial QEMU, which
// shows it to the kernel, may cut what is beyond these.
const longestName = 36

// cloudName is what a volume is called in DigitalOcean, at the given try: names may be taken by what was forgotten.
func (p *Provider) cloudName(name string, try int) string {
	return labels.NameAt(try, p.cluster(), name, longestName)
}

func (p *Provider) cluster() string { return p.cfg.Cluster }

// bears tells whether a volume is this cluster's of that name.
func (p *Provider) bears(v godo.Volume, name string) bool {
	is := identityOf(v.Tags)
	return is.cluster == p.cluster() && is.name == name
}

// hidden is the error for a volume that blockvol has made and that is shown without its tags, nil for any other: to a token
// without the scope for them it looks as if it had none. It may be the very one that is looked for.
func hidden(v godo.Volume) error {
	if len(v.Tags) > 0 || !strings.HasPrefix(v.Description, described) {
		return nil
	}
	return fmt.Errorf("DigitalOcean shows volume %s, which calls itself %q, without its tags: give the token the scope tag:read; if somebody took the tags away, take the volume back with the option volume-id=%s", v.ID, quote.Clip(v.Description), v.ID)
}

// answer is what is found under a name.
type answer struct {
	volumes []godo.Volume
	err     error
}

// answers tells whether a volume that is called as that of the name is an answer to the question for it.
func (p *Provider) answers(v godo.Volume, name string) (a answer, is bool) {
	if p.bears(v, name) {
		return answer{volumes: []godo.Volume{v}}, true
	}
	a.err = hidden(v)
	return a, a.err != nil
}

// askNames looks for one name under what its volume is called, then by the tag of the name. It looks for several names, or for one
// that this does not settle, among all volumes of the region.
func (p *Provider) askNames(ctx context.Context, names []string) (map[string]answer, error) {
	here, err := p.here(ctx)
	if err != nil {
		return nil, err
	}
	if len(names) == 1 {
		list, shown, err := p.api.Storage.ListVolumes(ctx, &godo.ListVolumeParams{Region: here.region, Name: p.called(names[0])})
		if err := p.explain(ctx, fmt.Sprintf("the request for the volume named %q", p.called(names[0])), err, shown != nil && shown.Meta != nil); err != nil {
			return nil, err
		}
		for _, v := range list {
			if a, is := p.answers(v, names[0]); is {
				return map[string]answer{names[0]: a}, nil
			}
		}
		asked := time.Now()
		if v, settled := p.tagged(ctx, names[0]); settled {
			p.absent.See(names[0], asked, v == nil)
			if v == nil {
				return nil, nil
			}
			p.call(names[0], v.Name)
			return map[string]answer{names[0]: {volumes: []godo.Volume{*v}}}, nil
		}
	}
	asked := time.Now()
	list, err := p.region(ctx, here.region)
	if err != nil {
		return nil, err
	}
	found := make(map[string]answer)
	for _, name := range names {
		var a answer
		for _, v := range list {
			if p.bears(v, name) {
				a.volumes = append(a.volumes, v)
			} else if v.Name == p.cloudName(name, 0) && a.err == nil {
				a.err = hidden(v)
			}
		}
		if len(a.volumes) > 0 {
			a.err = nil
			p.call(name, a.volumes[0].Name)
		}
		p.absent.See(name, asked, len(a.volumes) == 0 && a.err == nil)
		found[name] = a
	}
	return found, nil
}

// tagged returns this cluster's volume of that name, nil if there is none, by the number of volumes that have the tag of the name.
// So an adopted volume, which has a name of its own in DigitalOcean, is found, or known not to exist, by as many calls however many
// volumes there are. It settles nothing if several volumes of the account have the tag, such as those of other clusters and regions
// and disks that were forgotten, or if the answer cannot be had, as with a token without the scope tag:read.
//
// The request names the tag in small letters, and DigitalOcean has none of that spelling if somebody made the tag by hand in
// capitals. No volume gets such a tag: see tag and makeOnce.
func (p *Provider) tagged(ctx context.Context, name string) (v *godo.Volume, settled bool) {
	count, id, err := p.bearing(ctx, name)
	if err != nil || count == 0 {
		return nil, err == nil
	}
	if count > 1 {
		return nil, false
	}
	only, err := p.lookup(ctx, id)
	here, whereErr := p.here(ctx)
	switch {
	case err != nil || whereErr != nil:
		return nil, false
	case p.bears(only, name) && (only.Region == nil || only.Region.Slug == here.region):
		return &only, true
	}
	return nil, true
}

// bearing returns how many volumes of the account have the tag of the name, or the first of its tags, and the id of one of them.
func (p *Provider) bearing(ctx context.Context, name string) (count int, id string, err error) {
	tag := textTags(textName, name)[0]
	found, _, err := p.api.Tags.Get(ctx, tag)
	err = p.explain(ctx, "the request for tag "+tag, err, found != nil && found.Resources != nil && found.Resources.Volumes != nil)
	switch {
	case isMissing(err): // nothing has ever had it
		return 0, "", nil
	case err != nil:
		return 0, "", err
	}
	return found.Resources.Volumes.Count, path.Base(found.Resources.Volumes.LastTaggedURI), nil
}

// called is what a volume is called in DigitalOcean, as far as this process knows.
func (p *Provider) called(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if alias := p.aliases[name]; alias != "" {
		return alias
	}
	return p.cloudName(name, 0)
}

// call remembers what a volume is called in DigitalOcean.
func (p *Provider) call(name, called string) {
	p.absent.See(name, time.Now(), false)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.aliases, name)
	if called != p.cloudName(name, 0) {
		p.aliases[name] = called
	}
}

// region returns all volumes of a region, whoever they belong to.
func (p *Provider) region(ctx context.Context, region string) ([]godo.Volume, error) {
	return all(ctx, p, "the request for the volumes of region "+region, func(v godo.Volume) string { return v.ID }, func(ctx context.Context, page *godo.ListOptions) ([]godo.Volume, *godo.Response, error) {
		return p.api.Storage.ListVolumes(ctx, &godo.ListVolumeParams{Region: region, ListOptions: page})
	})
}

// Find looks in this node's region.
func (p *Provider) Find(ctx context.Context, name string) (*providers.Volume, error) {
	asked := time.Now()
	v, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.settle(ctx, v, asked)
}

// find is Find in DigitalOcean's words.
func (p *Provider) find(ctx context.Context, name string) (godo.Volume, error) {
	if name == "" {
		return godo.Volume{}, fmt.Errorf("%w: a volume without a name", providers.ErrNotFound)
	}
	a, _, err := p.byName.Get(ctx, name)
	switch {
	case err != nil:
		return godo.Volume{}, err
	case a.err != nil:
		return godo.Volume{}, a.err
	}
	return p.bearers().One(name, a.volumes)
}

func (p *Provider) bearers() providers.Bearers[godo.Volume] {
	return providers.Bearers[godo.Volume]{
		Cloud: "this region of DigitalOcean", Cluster: p.cluster(), Take: "the tag that begins with " + tagPrefix + textCluster,
		Show: func(v godo.Volume) string { return fmt.Sprintf("%s (%s)", v.ID, v.Name) },
	}
}

// List returns the cluster's volumes of this node's region.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	here, err := p.here(ctx)
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	list, err := p.region(ctx, here.region)
	if err != nil {
		return nil, err
	}
	byName := make(map[string][]godo.Volume)
	var problems []error
	for _, v := range list {
		is := identityOf(v.Tags)
		switch err := hidden(v); {
		case err != nil:
			problems = append(problems, err)
		case is.cluster == p.cluster() && is.name == "":
			problems = append(problems, fmt.Errorf("volume %s (%s) is of this cluster, but the name in its tags cannot be read: take the tags that begin with %s from it, and adopt it with volume-id=%s", v.ID, v.Name, tagPrefix, v.ID))
		case is.cluster == p.cluster():
			byName[is.name] = append(byName[is.name], v)
		}
	}
	return p.bearers().List(byName, func(v godo.Volume) (*providers.Volume, error) { return p.describe(v, asked), nil }, problems...)
}

// describe puts DigitalOcean's description into the contract's words. It was asked for at that time, or later.
func (p *Provider) describe(from godo.Volume, asked time.Time) *providers.Volume {
	is := identityOf(from.Tags)
	v := &providers.Volume{
		ID: from.ID, Name: is.name, Size: from.SizeGigaBytes * gib, CreatedAt: from.CreatedAt.UTC(), Serial: from.Name,
		Snapshot: is.snapshot, Record: recordOf(from.Tags), Attachment: p.attachmentOf(from, asked),
		Details: map[string]string{"cloud-name": from.Name},
	}
	if from.Region != nil {
		v.Zone = from.Region.Slug
	}
	p.ours.See(from.ID, asked, is.cluster == p.cluster())
	return v
}

var volumeID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// lookup asks for a volume by its id, whoever it belongs to, wherever it is.
func (p *Provider) lookup(ctx context.Context, id string) (godo.Volume, error) {
	if !volumeID.MatchString(id) {
		if err := ctx.Err(); err != nil {
			return godo.Volume{}, err
		}
		return godo.Volume{}, fmt.Errorf("%w: %q is no id of a DigitalOcean volume, which looks like 506f78a4-e098-11e5-ad9f-000f53306ae1", providers.ErrNotFound, quote.Clip(id))
	}
	asked := time.Now()
	v, found, err := p.byID.Get(ctx, id)
	if err != nil {
		return godo.Volume{}, err
	}
	if !found {
		p.ours.See(id, asked, false)
		p.moves.Delete(id)
		return godo.Volume{}, fmt.Errorf("%w: DigitalOcean has no volume %s", providers.ErrNotFound, id)
	}
	return v, nil
}

func (p *Provider) askIDs(ctx context.Context, ids []string) (map[string]godo.Volume, error) {
	found := make(map[string]godo.Volume)
	if len(ids) > 1 {
		here, err := p.here(ctx)
		if err != nil {
			return nil, err
		}
		list, err := p.region(ctx, here.region)
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

// lookupOurs is lookup for a volume of this cluster.
func (p *Provider) lookupOurs(ctx context.Context, id string) (godo.Volume, error) {
	v, err := p.lookup(ctx, id)
	if err != nil {
		return v, err
	}
	if err := hidden(v); err != nil {
		return v, err
	}
	if is := identityOf(v.Tags); is.cluster != p.cluster() || is.name == "" {
		return v, providers.NotOurs(id)
	}
	return v, nil
}

// ensureOurs returns an error unless the volume is this cluster's. DigitalOcean is asked only if this process does not know.
func (p *Provider) ensureOurs(ctx context.Context, id string, age time.Duration) error {
	if ours, known := p.ours.Within(age, id); known && ours {
		return ctx.Err()
	}
	asked := time.Now()
	v, err := p.lookupOurs(ctx, id)
	if err == nil {
		p.describe(v, asked)
	}
	return err
}

// Delete destroys the volume. DigitalOcean itself refuses one that is attached.
func (p *Provider) Delete(ctx context.Context, id string) error {
	_, err := p.lookupOurs(ctx, id)
	if err == nil {
		err = p.line.Do(ctx, "volume "+id, func(ctx context.Context) error {
			answer, err := p.api.Storage.DeleteVolume(ctx, id)
			err = p.done(ctx, "the request to delete volume "+id, answer, err)
			switch {
			case isMissing(err):
				return nil
			case isConflict(err):
				return p.standing(ctx, id, "", err)
			}
			return err
		})
	}
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	}
	return err
}

// standing is what a refusal means, to a node or to none, by how the volume stands.
func (p *Provider) standing(ctx context.Context, id, node string, refusal error) error {
	asked := time.Now()
	v, err := p.lookupOurs(ctx, id)
	if err != nil {
		return err
	}
	now, err := p.settle(ctx, v, asked)
	if err != nil {
		return err
	}
	if left, is := p.left.Within(unasked, id); is && left == node && now.HeldBy(node) { // the answer may be older
		return fmt.Errorf("%w: volume %s was just detached from this droplet: %w", providers.ErrBusy, id, refusal)
	}
	return now.Attachment.Refused(id, node, refusal)
}

func isConflict(err error) bool { return errors.Is(err, errConflict) }

// Forget takes the cluster from the tags. The name stays until the disk is given another, so that a disk of blockvol's is never
// without a tag; the record stays too. An attach by another node that is under way may not be shown yet: then that node finds
// the volume to be nobody's.
func (p *Provider) Forget(ctx context.Context, id string) error {
	asked := time.Now()
	v, err := p.lookup(ctx, id)
	if err != nil {
		return err
	}
	if err := hidden(v); err != nil {
		return err
	}
	is := identityOf(v.Tags)
	switch {
	case !is.owned():
		return nil
	case is.cluster != p.cluster():
		return providers.NotOurs(id)
	}
	if held := p.attachmentOf(v, asked); held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	return p.disown(ctx, v)
}

// disown makes a volume nobody's.
func (p *Provider) disown(ctx context.Context, v godo.Volume) error {
	if err := p.untag(ctx, v.ID, tagsOf(v, textCluster)); err != nil {
		return err
	}
	p.ours.See(v.ID, time.Now(), false)
	return nil
}

// tagsOf are the volume's tags that say a text.
func tagsOf(v godo.Volume, key string) []string {
	return slices.DeleteFunc(slices.Clone(v.Tags), func(tag string) bool { return textOf(tag) != key })
}

// Adopt gives an existing volume the tags of one of ours. That of the cluster comes last: before, it is nobody's.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record), checkTags(spec.Tags)); err != nil {
		return nil, err
	}
	here, err := p.here(ctx)
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	v, err := p.lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) (*providers.Volume, error) {
		return nil, fmt.Errorf("%w: %s %s", providers.ErrInvalid, id, fmt.Sprintf(format, args...))
	}
	is := identityOf(v.Tags)
	again := p.bears(v, spec.Name)
	held := p.attachmentOf(v, asked)
	switch {
	case v.Region != nil && v.Region.Slug != here.region:
		return refuse("is in region %s, and this node in region %s, where it cannot be attached", v.Region.Slug, here.region)
	case !again && is.owned():
		return refuse("is volume %q of cluster %q already: remove it there with reclaim=retain first", is.name, is.cluster)
	case !again && held.State != providers.Detached:
		return refuse("is attached to droplet %s: detach it first", held.Node)
	}
	if err := p.unique(ctx, here.region, spec.Name, id); err != nil {
		return nil, err
	}
	wanted := append(textTags(textName, spec.Name), textTags(textCluster, p.cluster())...)
	stale := slices.DeleteFunc(append(tagsOf(v, textCluster), tagsOf(v, textName)...), func(tag string) bool {
		return slices.Contains(wanted, strings.ToLower(tag))
	})
	if err := p.untag(ctx, id, stale); err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(spec.Record)) {
		if err := p.mark(ctx, v, key, spec.Record[key]); err != nil {
			return nil, err
		}
	}
	missing := slices.DeleteFunc(append(operatorTags(spec.Tags), wanted...), func(tag string) bool {
		return slices.ContainsFunc(v.Tags, func(is string) bool { return strings.EqualFold(is, tag) })
	})
	if err := p.tag(ctx, id, missing); err != nil {
		return nil, err
	}
	asked = time.Now()
	if v, err = p.lookup(ctx, id); err != nil {
		return nil, err
	}
	if err := hidden(v); err != nil {
		return nil, err
	}
	// Another node may have given this name to another volume meanwhile, or this volume another name.
	err = p.unique(ctx, here.region, spec.Name, id)
	if err == nil && !p.bears(v, spec.Name) {
		err = fmt.Errorf("%w: another node adopts volume %s at this moment", providers.ErrBusy, id)
	}
	if err != nil {
		if failed := p.disown(ctx, v); failed != nil {
			return nil, fmt.Errorf("%w, and what was done cannot be undone (%w): take the tag that begins with %s from it", err, failed, tagPrefix+textCluster)
		}
		return nil, err
	}
	p.call(spec.Name, v.Name)
	return p.describe(v, asked), nil
}

// unique returns an error if another volume than that has the name.
func (p *Provider) unique(ctx context.Context, region, name, id string) error {
	list, err := p.region(ctx, region)
	if err != nil {
		return err
	}
	for _, v := range list {
		if v.ID != id && p.bears(v, name) {
			return fmt.Errorf("%w: %s cannot be %q: that is the name of volume %s", providers.ErrInvalid, id, name, v.ID)
		}
		if err := hidden(v); err != nil && v.ID != id && v.Name == p.cloudName(name, 0) {
			return err
		}
	}
	return nil
}
