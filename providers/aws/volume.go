package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/recent"
)

const gib = 1 << 30

// describeVolumes returns all volumes that meet the filter, wherever in the region. EC2 cuts pages before it filters, so
// that few volumes of a large account may cost many pages: those that are asked for by name come without, perPage nil.
func (p *Provider) describeVolumes(ctx context.Context, by types.Filter, perPage *int32) ([]types.Volume, error) {
	return pages(ctx, p, "DescribeVolumes", func(ctx context.Context, api *ec2.Client, next *string) ([]types.Volume, *string, error) {
		page, err := api.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: []types.Filter{by}, MaxResults: perPage, NextToken: next})
		if err != nil {
			return nil, nil, err
		}
		return page.Volumes, page.NextToken, nil
	})
}

func (p *Provider) askByKey(ctx context.Context, keys []string) (map[string][]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("tag:"+tagKey, keys...), nil)
	found := make(map[string][]types.Volume)
	for _, v := range all {
		key := tagMap(v.Tags)[tagKey]
		found[key] = append(found[key], v)
	}
	return found, err
}

// askByID asks by a filter, since one unknown id among VolumeIds fails the whole call.
func (p *Provider) askByID(ctx context.Context, ids []string) (map[string]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("volume-id", ids...), nil)
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

// bears tells whether the volume exists as this cluster's of that name, as far as the read and this process know.
func (p *Provider) bears(v types.Volume, name string) bool {
	tags := tagMap(v.Tags)
	return exists(v) && p.isOurs(tags) && tags[tagName] == name && !p.memory.hides(lifeOf(*v.VolumeId, tags))
}

// Find looks in the whole region, whatever the zone.
func (p *Provider) Find(ctx context.Context, name string) (*providers.Volume, error) {
	v, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.describe(v), nil
}

// find is Find in EC2's words.
func (p *Provider) find(ctx context.Context, name string) (types.Volume, error) {
	if name == "" {
		return types.Volume{}, fmt.Errorf("%w: a volume without a name", providers.ErrNotFound)
	}
	lately := p.memory.makes(name) // before the question, whose answer may come after it is forgotten
	all, _, err := p.byKey.Get(ctx, p.keyOf(name))
	if err != nil {
		return types.Volume{}, err
	}
	var ours []types.Volume
	for _, v := range all {
		if p.bears(v, name) {
			ours = append(ours, v)
		}
	}
	switch len(ours) {
	case 1:
		return ours[0], broken(ours[0])
	case 0:
		return p.findMade(ctx, name, lately)
	}
	return p.bearers().One(name, ours)
}

// broken is the error for a volume that EC2 has failed at. It is not called absent, since it may have held data.
func broken(v types.Volume) error {
	if v.State != types.VolumeStateError {
		return nil
	}
	id := sdk.ToString(v.VolumeId)
	return fmt.Errorf("EC2 calls volume %s %q: if it has just been created, EC2 could not make it and removes it by itself in a while; otherwise its disk has failed: restore a snapshot, and remove it with aws ec2 delete-volume --volume-id %s", id, v.State, id)
}

func (p *Provider) bearers() providers.Bearers[types.Volume] {
	return providers.Bearers[types.Volume]{
		Cloud: "EC2", Cluster: p.cluster, Take: "the tag " + tagCluster,
		Show: func(v types.Volume) string {
			return fmt.Sprintf("%s in zone %s", sdk.ToString(v.VolumeId), sdk.ToString(v.AvailabilityZone))
		},
	}
}

// findMade settles whether a volume that no read shows is not there, or was made by this process so lately that reads do not
// show it yet. Only a question asked when they must is answered with no.
func (p *Provider) findMade(ctx context.Context, name string, lately made) (types.Volume, error) {
	retry := pace.Backoff{Most: time.Second}
	for lately.id != "" {
		asked := time.Now()
		v, found, err := p.byID.Get(ctx, lately.id)
		switch {
		case err != nil:
			return types.Volume{}, err
		case found && p.bears(v, name):
			return v, broken(v)
		case found && !exists(v):
			p.memory.lose(lately.id)
		}
		if found && !exists(v) || asked.Sub(lately.at) >= lagging {
			break
		}
		if err := retry.Wait(ctx); err != nil {
			return types.Volume{}, err
		}
	}
	return p.bearers().One(name, nil)
}

// List returns the cluster's volumes. Those that share a name or have failed are left out, and the error names them.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	lately := p.memory.names()
	all, err := p.describeVolumes(ctx, filter("tag:"+tagCluster, escape(p.cluster)), sdk.Int32(500))
	if err != nil {
		return nil, err
	}
	byName := make(map[string][]types.Volume)
	for _, v := range all {
		if name := tagMap(v.Tags)[tagName]; p.bears(v, name) {
			byName[name] = append(byName[name], v)
			delete(lately, name)
		}
	}
	for name, v := range lately {
		v, err := p.findMade(ctx, name, v)
		if err == nil {
			byName[name] = append(byName[name], v)
		} else if !errors.Is(err, providers.ErrNotFound) {
			return nil, err
		}
	}
	// The driver lists when it starts, with nobody waiting: what an attach has to know is asked for now, so that the first
	// mount need not. A failure is no matter, since Attach asks for itself.
	if s := p.begun(); s != nil && !p.slots.hasRead(0) {
		_ = p.readSlots(ctx, s, 0)
	}
	return p.bearers().List(byName, func(v types.Volume) (*providers.Volume, error) {
		if err := broken(v); err != nil {
			return nil, fmt.Errorf("%q: %w", tagMap(v.Tags)[tagName], err)
		}
		return p.describe(v), nil
	})
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
		Details: map[string]string{
			"type": string(from.VolumeType), "zone": sdk.ToString(from.AvailabilityZone),
			"encrypted": strconv.FormatBool(sdk.ToBool(from.Encrypted)),
		},
	}
	if from.Iops != nil {
		v.Details["iops"] = strconv.Itoa(int(*from.Iops))
	}
	if from.Throughput != nil && *from.Throughput > 0 {
		v.Details["throughput"] = strconv.Itoa(int(*from.Throughput))
	}
	if key := cmp.Or(tags[tagKMSKey], sdk.ToString(from.KmsKeyId)); key != "" {
		v.Details["kms-key"] = key
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

// lookup asks EC2 for a volume by its id, whoever it belongs to. That a volume which was this cluster's a moment ago is not
// there, or not ours, may be a read from before: then EC2 is asked again until it must show the truth.
func (p *Provider) lookup(ctx context.Context, id string) (types.Volume, error) {
	if !volumeID.MatchString(id) {
		return types.Volume{}, fmt.Errorf("%w: %q is no id of an EBS volume, which looks like vol-0123456789abcdef0", providers.ErrNotFound, id)
	}
	retry := pace.Backoff{Most: time.Second}
	for {
		ours, there := p.memory.known(id)
		asked := time.Now()
		v, found, err := p.byID.Get(ctx, id)
		if err != nil {
			return types.Volume{}, err
		}
		over := found && !exists(v) // for good
		if tags := tagMap(v.Tags); found && !over && p.isOurs(tags) && !p.memory.hides(lifeOf(id, tags)) {
			return v, nil
		}
		switch {
		case found && !over && asked.Sub(ours) >= lagging:
			return v, nil
		case over, !found && asked.Sub(there) >= lagging:
			p.memory.lose(id)
			return types.Volume{}, fmt.Errorf("%w: EC2 has no volume %s in this region", providers.ErrNotFound, id)
		}
		if err := retry.Wait(ctx); err != nil {
			return types.Volume{}, err
		}
	}
}

// lookupOurs is lookup for a volume of this cluster.
func (p *Provider) lookupOurs(ctx context.Context, id string) (*providers.Volume, error) {
	v, err := p.lookup(ctx, id)
	if err != nil {
		return nil, err
	}
	if tags := tagMap(v.Tags); !p.isOurs(tags) || p.memory.hides(lifeOf(id, tags)) {
		return nil, providers.NotOurs(id)
	}
	return p.describe(v), nil
}

// ensureOurs returns an error unless the volume is this cluster's. EC2 is asked only if this process does not know.
func (p *Provider) ensureOurs(ctx context.Context, id string, age time.Duration) error {
	if ours, _ := p.memory.known(id); time.Since(ours) < age {
		return ctx.Err()
	}
	_, err := p.lookupOurs(ctx, id)
	return err
}

// Mark stores one entry as a tag.
func (p *Provider) Mark(ctx context.Context, id, key, value string) error {
	if err := providers.CheckRecord(providers.Record{key: value}); err != nil {
		return err
	}
	if err := p.ensureOurs(ctx, id, recent.WhileFree); err != nil {
		return err
	}
	if err := p.tag(ctx, id, map[string]string{tagRecord + key: value}); err != nil {
		return err
	}
	p.memory.mark(id, key, value)
	return nil
}

func (p *Provider) tag(ctx context.Context, id string, tags map[string]string) error {
	_, err := alter(ctx, p, id, "CreateTags", func(ctx context.Context, api *ec2.Client) (*ec2.CreateTagsOutput, error) {
		return api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: tagList(tags)})
	})
	return err
}

// Adopt gives an existing volume the tags of one of ours.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record), checkTags(spec.Tags)); err != nil {
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
	hidden := p.memory.hides(lifeOf(id, tags))
	again := p.isOurs(tags) && tags[tagName] == spec.Name && !hidden
	owner, owned := tags[tagCluster]
	switch {
	case sdk.ToBool(v.MultiAttachEnabled):
		return refuse("is made for Multi-Attach, and several nodes may write to it: blockvol keeps volumes with one writer only")
	case again:
	case v.State == types.VolumeStateError:
		return nil, broken(v)
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
	if !again {
		marks[tagTurn] = "adopted " + time.Now().UTC().Format(time.RFC3339Nano) // no ClientToken's, and another life
	}
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
	if _, owned := tags[tagCluster]; !owned || p.memory.hides(lifeOf(id, tags)) {
		return nil
	}
	if !p.isOurs(tags) {
		return providers.NotOurs(id)
	}
	if held := attachmentOf(from); held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	_, err = alter(ctx, p, id, "DeleteTags", func(ctx context.Context, api *ec2.Client) (*ec2.DeleteTagsOutput, error) {
		// By key and value: what somebody else has written meanwhile stays.
		return api.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: []string{id}, Tags: tagList(map[string]string{
			tagCluster: p.cluster, tagName: tags[tagName], tagKey: tags[tagKey],
		})})
	})
	if err != nil {
		return err
	}
	p.end(from)
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
	if !p.isOurs(tags) || p.memory.hides(lifeOf(id, tags)) {
		return nil
	}
	if held := attachmentOf(from); held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	_, err = alter(ctx, p, id, "DeleteVolume", func(ctx context.Context, api *ec2.Client) (*ec2.DeleteVolumeOutput, error) {
		return api.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &id})
	})
	switch {
	case errors.Is(err, errInUse):
		return p.heldError(ctx, id)
	case errors.Is(err, errWrongState):
		return fmt.Errorf("%w: %w", providers.ErrBusy, err)
	case err != nil && !errors.Is(err, providers.ErrNotFound):
		return err
	}
	p.end(from)
	p.memory.lose(id)
	return nil
}

// end notes that the volume bears its name no more, and that the ClientToken which made it leads nowhere as long as EC2 keeps
// it in mind. When that is past, the token makes a volume again.
func (p *Provider) end(v types.Volume) {
	tags := tagMap(v.Tags)
	p.memory.hide(lifeOf(*v.VolumeId, tags), remembered)
	if n, err := strconv.Atoi(tags[tagTurn]); err == nil {
		p.memory.spend(turn{tags[tagName], n}, tokenKept-time.Since(sdk.ToTime(v.CreateTime)))
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
