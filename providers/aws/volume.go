package aws

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
)

const gib = 1 << 30

// describeVolumes returns all volumes that meet the filter, wherever in the region. EC2 cuts pages before it filters, so
// that few volumes of a large account may cost many pages: those that are asked for by name come without (page 0).
func (p *Provider) describeVolumes(ctx context.Context, by types.Filter, page int32) ([]types.Volume, error) {
	return call(ctx, p, "DescribeVolumes", func(ctx context.Context, api *ec2.Client) ([]types.Volume, error) {
		in := &ec2.DescribeVolumesInput{Filters: []types.Filter{by}}
		if page > 0 {
			in.MaxResults = &page
		}
		var all []types.Volume
		pages := ec2.NewDescribeVolumesPaginator(api, in)
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, page.Volumes...)
		}
		return all, nil
	})
}

func (p *Provider) askByKey(ctx context.Context, keys []string) (map[string][]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("tag:"+tagKey, keys...), 0)
	found := make(map[string][]types.Volume)
	for _, v := range all {
		key := tagMap(v.Tags)[tagKey]
		found[key] = append(found[key], v)
	}
	return found, err
}

// askByID asks by a filter, since one unknown id among VolumeIds fails the whole call.
func (p *Provider) askByID(ctx context.Context, ids []string) (map[string]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("volume-id", ids...), 0)
	found := make(map[string]types.Volume)
	for _, v := range all {
		found[sdk.ToString(v.VolumeId)] = v
	}
	return found, err
}

// exists tells whether EC2 still has the disk.
func exists(v types.Volume) bool {
	return v.State != types.VolumeStateDeleting && v.State != types.VolumeStateDeleted
}

// Find looks in the whole region, whatever the zone.
func (p *Provider) Find(ctx context.Context, name string) (*providers.Volume, error) {
	if name == "" {
		return nil, fmt.Errorf("%w: a volume without a name", providers.ErrNotFound)
	}
	all, _, err := p.byKey.get(ctx, p.keyOf(name))
	if err != nil {
		return nil, err
	}
	var ours []types.Volume
	for _, v := range all {
		tags := tagMap(v.Tags)
		if exists(v) && p.isOurs(tags) && tags[tagName] == name && !p.memory.hides(*v.VolumeId, name) {
			ours = append(ours, v)
		}
	}
	switch len(ours) {
	case 1:
		return p.describe(ours[0]), nil
	case 0:
		return p.findMade(ctx, name)
	}
	return nil, ambiguous(name, ours)
}

func ambiguous(name string, all []types.Volume) error {
	ids := make([]string, 0, len(all))
	for _, v := range all {
		ids = append(ids, fmt.Sprintf("%s in zone %s", sdk.ToString(v.VolumeId), sdk.ToString(v.AvailabilityZone)))
	}
	slices.Sort(ids)
	return fmt.Errorf("%w: %q is the name of %s: find out which holds the data, and take the tag %s from the others",
		providers.ErrAmbiguous, name, strings.Join(ids, " and "), tagCluster)
}

// findMade settles whether a volume that no read shows is not there, or was made by this process so lately that reads do not
// show it yet.
func (p *Provider) findMade(ctx context.Context, name string) (*providers.Volume, error) {
	retry := backoff{most: time.Second}
	for {
		id, _ := p.memory.makes(name)
		if id == "" {
			return nil, fmt.Errorf("%w: EC2 has none named %q in cluster %q", providers.ErrNotFound, name, p.cluster)
		}
		v, found, err := p.byID.get(ctx, id)
		if err != nil {
			return nil, err
		}
		if tags := tagMap(v.Tags); found && (!exists(v) || tags[tagName] != name || !p.isOurs(tags)) {
			if !exists(v) {
				p.memory.hide(id, name)
			}
			return nil, fmt.Errorf("%w: EC2 has none named %q in cluster %q any more", providers.ErrNotFound, name, p.cluster)
		}
		if found {
			return p.describe(v), nil
		}
		if err := retry.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// List returns the cluster's volumes. Those that share a name are left out, and the error names them.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("tag:"+tagCluster, escape(p.cluster)), 500)
	if err != nil {
		return nil, err
	}
	lately := p.memory.names()
	byName := make(map[string][]types.Volume)
	for _, v := range all {
		if tags := tagMap(v.Tags); exists(v) && p.isOurs(tags) && !p.memory.hides(*v.VolumeId, tags[tagName]) {
			byName[tags[tagName]] = append(byName[tags[tagName]], v)
			delete(lately, tags[tagName])
		}
	}
	for name, id := range lately {
		v, found, err := p.byID.get(ctx, id)
		if err != nil {
			return nil, err
		}
		if tags := tagMap(v.Tags); found && exists(v) && p.isOurs(tags) {
			byName[name] = append(byName[name], v)
		}
	}
	var volumes []*providers.Volume
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if same := byName[name]; len(same) > 1 {
			problems = append(problems, ambiguous(name, same))
		} else {
			volumes = append(volumes, p.describe(same[0]))
		}
	}
	return volumes, errors.Join(problems...)
}

// escape makes a filter's value stand for itself: * and ? are wildcards in it.
func escape(value string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`).Replace(value)
}

// describe puts EC2's description into the contract's words.
func (p *Provider) describe(from types.Volume) *providers.Volume {
	tags := tagMap(from.Tags)
	v := &providers.Volume{
		ID:        sdk.ToString(from.VolumeId),
		Name:      tags[tagName],
		Size:      int64(sdk.ToInt32(from.Size)) * gib,
		Zone:      sdk.ToString(from.AvailabilityZone),
		CreatedAt: sdk.ToTime(from.CreateTime).UTC(),
		Serial:    strings.Replace(sdk.ToString(from.VolumeId), "-", "", 1),
		Snapshot:  sdk.ToString(from.SnapshotId),
		Record:    recordOf(tags),
		Details:   map[string]string{"type": string(from.VolumeType), "encrypted": strconv.FormatBool(sdk.ToBool(from.Encrypted))},
	}
	if from.Iops != nil {
		v.Details["iops"] = strconv.Itoa(int(*from.Iops))
	}
	if from.Throughput != nil && *from.Throughput > 0 {
		v.Details["throughput"] = strconv.Itoa(int(*from.Throughput))
	}
	if from.KmsKeyId != nil {
		v.Details["kms-key"] = *from.KmsKeyId
	}
	v.Attachment = attachmentOf(from)
	p.memory.complete(v)
	if s := p.begun(); s != nil && v.HeldBy(s.instance) {
		p.slots.learn(v.ID, deviceOn(from, s.instance))
	}
	return v
}

// attachmentOf tells who holds the volume. One that several instances hold is not attached by blockvol, nor adopted.
func attachmentOf(v types.Volume) providers.Attachment {
	for _, a := range v.Attachments {
		held := providers.Attachment{Node: sdk.ToString(a.InstanceId)}
		switch a.State {
		case types.VolumeAttachmentStateDetached:
			continue
		case types.VolumeAttachmentStateAttaching:
			held.State = providers.Attaching
		case types.VolumeAttachmentStateAttached:
			held.State = providers.Attached
		default: // detaching; or busy, which is a detach that the instance has not let happen
			held.State = providers.Detaching
		}
		return held
	}
	return providers.Attachment{}
}

func deviceOn(v types.Volume, instance string) string {
	for _, a := range v.Attachments {
		if sdk.ToString(a.InstanceId) == instance {
			return sdk.ToString(a.Device)
		}
	}
	return ""
}

var volumeID = regexp.MustCompile(`^vol-[0-9a-f]{8}([0-9a-f]{9})?$`)

// lookup asks EC2 for a volume by its id, whoever it belongs to.
func (p *Provider) lookup(ctx context.Context, id string) (types.Volume, error) {
	if !volumeID.MatchString(id) {
		return types.Volume{}, fmt.Errorf("%w: %q is no id of an EBS volume, which looks like vol-0123456789abcdef0", providers.ErrNotFound, id)
	}
	v, found, err := p.byID.get(ctx, id)
	if err != nil {
		return types.Volume{}, err
	}
	if !found || !exists(v) {
		return types.Volume{}, fmt.Errorf("%w: EC2 has no volume %s in this region", providers.ErrNotFound, id)
	}
	return v, nil
}

// lookupOurs is lookup for a volume of this cluster.
func (p *Provider) lookupOurs(ctx context.Context, id string) (*providers.Volume, error) {
	v, err := p.lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	if tags := tagMap(v.Tags); !p.isOurs(tags) || p.memory.hides(id, tags[tagName]) {
		return nil, notOurs(id)
	}
	return p.describe(v), nil
}

// How long the knowledge that a volume is this cluster's may serve. It can only change while nobody holds the volume.
const (
	whileFree = time.Minute
	whileHeld = 365 * 24 * time.Hour
)

// ensureOurs returns an error unless the volume is this cluster's. EC2 is asked only if this process does not know.
func (p *Provider) ensureOurs(ctx context.Context, id string, age time.Duration) error {
	if p.memory.knows(id, age) {
		return ctx.Err()
	}
	_, err := p.lookupOurs(ctx, id)
	return err
}

// Mark stores one entry as a tag.
func (p *Provider) Mark(ctx context.Context, id, key, value string) error {
	if err := checkRecord(providers.Record{key: value}); err != nil {
		return err
	}
	if err := p.ensureOurs(ctx, id, whileFree); err != nil {
		return err
	}
	if err := p.tag(ctx, id, map[string]string{tagRecord + key: value}); err != nil {
		return err
	}
	p.memory.mark(id, key, value)
	return nil
}

func (p *Provider) tag(ctx context.Context, id string, tags map[string]string) error {
	_, err := call(ctx, p, "CreateTags", func(ctx context.Context, api *ec2.Client) (*ec2.CreateTagsOutput, error) {
		return api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: tagList(tags)})
	})
	return err
}

// Adopt gives an existing volume the tags of one of ours.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(checkName(spec.Name), checkRecord(spec.Record), checkTags(spec.Tags)); err != nil {
		return nil, err
	}
	v, err := p.lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	tags := tagMap(v.Tags)
	refuse := func(format string, args ...any) (*providers.Volume, error) {
		return nil, fmt.Errorf("%w: %s %s", providers.ErrInvalid, id, fmt.Sprintf(format, args...))
	}
	hidden := p.memory.hides(id, tags[tagName])
	again := p.isOurs(tags) && tags[tagName] == spec.Name && !hidden
	owner, owned := tags[tagCluster]
	switch {
	case sdk.ToBool(v.MultiAttachEnabled):
		return refuse("is made for Multi-Attach, and several nodes may write to it: blockvol keeps volumes with one writer only")
	case again:
	case owned && !hidden:
		return refuse("is volume %q of cluster %q already: remove it there with reclaim=retain first", tags[tagName], owner)
	case attachmentOf(v).State != providers.Detached:
		return refuse("is attached to instance %s: detach it first", attachmentOf(v).Node)
	}
	switch other, err := p.Find(ctx, spec.Name); {
	case err == nil && other.ID != id:
		return refuse("cannot be %q: that is the name of volume %s", spec.Name, other.ID)
	case err != nil && !errors.Is(err, providers.ErrNotFound):
		return nil, err
	}
	marks := p.marks(spec)
	if _, named := tags[tagShown]; named && spec.Tags[tagShown] == "" {
		delete(marks, tagShown)
	}
	maps.Copy(tags, marks)
	if len(tags) > maxTags {
		return refuse("would have %d tags, where EC2 allows %d: remove some", len(tags), maxTags)
	}
	if err := p.tag(ctx, id, marks); err != nil {
		return nil, err
	}
	p.memory.make(spec.Name, id)
	for key, value := range spec.Record {
		p.memory.mark(id, key, value)
	}
	v.Tags = tagList(tags)
	return p.describe(v), nil
}

// Forget takes cluster and name from the tags; the record stays.
func (p *Provider) Forget(ctx context.Context, id string) error {
	from, err := p.lookup(ctx, id)
	if err != nil {
		return err
	}
	tags := tagMap(from.Tags)
	if _, owned := tags[tagCluster]; !owned || p.memory.hides(id, tags[tagName]) {
		return nil
	}
	if !p.isOurs(tags) {
		return notOurs(id)
	}
	if held := attachmentOf(from); held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	_, err = call(ctx, p, "DeleteTags", func(ctx context.Context, api *ec2.Client) (*ec2.DeleteTagsOutput, error) {
		// By key and value: what somebody else has written meanwhile stays.
		return api.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: []string{id}, Tags: tagList(map[string]string{
			tagCluster: p.cluster, tagName: tags[tagName], tagKey: tags[tagKey],
		})})
	})
	if err != nil {
		return err
	}
	p.spend(tags)
	p.memory.hide(id, tags[tagName])
	return nil
}

// Delete destroys the volume. EC2 itself refuses one that is attached.
func (p *Provider) Delete(ctx context.Context, id string) error {
	from, err := p.lookup(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	tags := tagMap(from.Tags)
	if !p.isOurs(tags) || p.memory.hides(id, tags[tagName]) {
		return nil
	}
	_, err = call(ctx, p, "DeleteVolume", func(ctx context.Context, api *ec2.Client) (*ec2.DeleteVolumeOutput, error) {
		return api.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &id})
	})
	if errors.Is(err, errInUse) {
		return p.heldError(ctx, id)
	}
	if err != nil && !errors.Is(err, providers.ErrNotFound) {
		return err
	}
	p.spend(tags)
	p.memory.hide(id, tags[tagName])
	return nil
}

// spend notes that the ClientToken which made the volume with these tags leads to nothing of use any more.
func (p *Provider) spend(tags map[string]string) {
	if turn, err := strconv.Atoi(tags[tagTurn]); err == nil {
		p.memory.spend(tags[tagName], turn)
	}
}

// heldError is the refusal that names the holder, as far as reads show it.
func (p *Provider) heldError(ctx context.Context, id string) error {
	v, err := p.lookup(ctx, id)
	if err != nil {
		return &providers.HeldError{Volume: id}
	}
	return &providers.HeldError{Volume: id, Node: attachmentOf(v).Node}
}

func checkName(name string) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("%w: a volume's name has 1 to 255 bytes, and this one %d", providers.ErrInvalid, len(name))
	}
	return nil
}

var recordKey = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)

func checkRecord(rec providers.Record) error {
	for key, value := range rec {
		if !recordKey.MatchString(key) || len(value) > 255 {
			return fmt.Errorf("%w: entry %q of the record has %d bytes: keys are lower-case words of up to 16, values have up to 255", providers.ErrInvalid, key, len(value))
		}
	}
	return nil
}
