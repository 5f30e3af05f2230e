package aws

import (
	"cmp"
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
	"github.com/blockvol/blockvol/providers/managed"
)

const gib = providers.GiB

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

// named looks in the whole region, whatever the zone.
func (p *Provider) named(ctx context.Context, names []string) (map[string][]types.Volume, error) {
	byKey, keys := make(map[string]string, len(names)), make([]string, len(names))
	for i, name := range names {
		keys[i] = p.keyOf(name)
		byKey[keys[i]] = name
	}
	all, err := p.describeVolumes(ctx, filter("tag:"+tagKey, keys...), nil)
	found := make(map[string][]types.Volume)
	for _, v := range all {
		if name := byKey[tagMap(v.Tags)[tagKey]]; exists(v) {
			found[name] = append(found[name], v)
		}
	}
	return found, err
}

// all returns the volumes with the cluster's tag. The driver lists when it starts, with nobody waiting: what an attach has to know is
// asked for now, so that the first mount need not. A failure is no matter, since Attach asks for itself.
func (p *Provider) all(ctx context.Context) ([]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("tag:"+tagCluster, escape(p.cluster)), sdk.Int32(500))
	if s := p.begun(); err == nil && s != nil && !p.slotsOf(s.instance).hasRead(0) {
		_ = p.readSlots(ctx, p.slotsOf(s.instance), s.instance, 0)
	}
	return slices.DeleteFunc(all, func(v types.Volume) bool { return !exists(v) }), err
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

// has tells whether the volume exists as this cluster's of that name, as far as the answer and this process know.
func (p *Provider) has(v types.Volume, name string) bool {
	d := p.show(v)
	return exists(v) && p.IsOurs(d) && d.Name == name && !p.Hides(d)
}

// unusable is the error for a volume that EC2 has failed at, or that it would attach to several instances at once: blockvol relies
// on EC2 to refuse the second. It is not called absent, since it may hold data.
func unusable(v types.Volume) error {
	id := sdk.ToString(v.VolumeId)
	switch {
	case sdk.ToBool(v.MultiAttachEnabled):
		return fmt.Errorf("%w: %s is made for Multi-Attach, and several instances may write to it: blockvol keeps volumes with one writer only: detach it from all instances but one, and change it with aws ec2 modify-volume --volume-id %s --no-multi-attach-enabled (io2 only)", providers.ErrInvalid, id, id)
	case v.State != types.VolumeStateError:
		return nil
	}
	return fmt.Errorf("EC2 calls volume %s %q: if it has just been created, EC2 could not make it and removes it by itself in a while; otherwise its disk has failed: restore a snapshot, and remove it with aws ec2 delete-volume --volume-id %s", id, v.State, id)
}

// escape makes a filter's value stand for itself: * and ? are wildcards in it.
func escape(value string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`).Replace(value)
}

// show puts EC2's description into the contract's words.
func (p *Provider) show(from types.Volume) managed.Disk[types.Volume] {
	tags := tagMap(from.Tags)
	d := managed.Disk[types.Volume]{
		Volume: providers.Volume{
			ID:         sdk.ToString(from.VolumeId),
			Name:       tags[tagName],
			Size:       int64(sdk.ToInt32(from.Size)) * gib,
			Zone:       sdk.ToString(from.AvailabilityZone),
			CreatedAt:  sdk.ToTime(from.CreateTime).UTC(),
			Serial:     strings.Replace(sdk.ToString(from.VolumeId), "-", "", 1),
			Snapshot:   sdk.ToString(from.SnapshotId),
			Record:     recordOf(tags),
			Attachment: attachmentOf(from),
			Details: map[string]string{
				"type": string(from.VolumeType), "zone": sdk.ToString(from.AvailabilityZone),
				"encrypted": strconv.FormatBool(sdk.ToBool(from.Encrypted)),
			},
		},
		Cluster: tags[tagCluster], Claim: tags[tagTurn], Damaged: unusable(from), Creating: from.State == types.VolumeStateCreating, Native: from,
	}
	_, d.Marked = tags[tagCluster]
	if d.Cluster == p.cluster && tags[tagKey] != p.keyOf(d.Name) {
		d.Name = ""
	}
	if from.Iops != nil {
		d.Details["iops"] = strconv.Itoa(int(*from.Iops))
	}
	if from.Throughput != nil && *from.Throughput > 0 {
		d.Details["throughput"] = strconv.Itoa(int(*from.Throughput))
	}
	if key := cmp.Or(tags[tagKMSKey], sdk.ToString(from.KmsKeyId)); key != "" {
		d.Details["kms-key"] = key
	}
	if known, is := p.places.Load(d.Attachment.Node); is {
		known.(*slots).learn(d.ID, deviceOn(from, d.Attachment.Node)) //nolint:forcetypeassert // nothing else is stored
	}
	return d
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

// get asks EC2 for a volume by its id, whoever it belongs to.
func (p *Provider) get(ctx context.Context, id string) (types.Volume, error) {
	v, found, err := p.byID.Get(ctx, id)
	switch {
	case err != nil:
		return v, err
	case !found:
		return v, fmt.Errorf("%w: EC2 has no volume %s in this region", providers.ErrNotFound, id)
	case !exists(v):
		return v, fmt.Errorf("%w: EC2 has no volume %s in this region: %w", providers.ErrNotFound, id, managed.ErrDeleted)
	}
	return v, nil
}

// volume returns a volume of this cluster.
func (p *Provider) volume(ctx context.Context, id string) (*providers.Volume, error) {
	d, err := p.GetOurs(ctx, id)
	return &d.Volume, err
}

// mark stores one entry as a tag.
func (p *Provider) mark(ctx context.Context, d managed.Disk[types.Volume], key, value string) error {
	return p.tag(ctx, d.ID, map[string]string{tagRecord + key: value})
}

func (p *Provider) tag(ctx context.Context, id string, tags map[string]string) error {
	_, err := alter(ctx, p, id, "CreateTags", func(ctx context.Context, api *ec2.Client) (*ec2.CreateTagsOutput, error) {
		return api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: tagList(tags)})
	})
	return err
}

// claim gives an existing volume the tags of one of ours.
func (p *Provider) claim(ctx context.Context, d managed.Disk[types.Volume], spec providers.Spec) (types.Volume, error) {
	tags, marks := tagMap(d.Native.Tags), p.marks(spec)
	if !p.IsOurs(d) {
		marks[tagTurn] = "adopted " + time.Now().UTC().Format(time.RFC3339Nano) // no ClientToken's, and another life
	}
	if _, named := tags[tagShown]; named && spec.Tags[tagShown] == "" {
		delete(marks, tagShown)
	}
	maps.Copy(tags, marks)
	if len(tags) > maxTags {
		return d.Native, fmt.Errorf("%w: %s would have %d tags, where EC2 allows %d: remove some", providers.ErrInvalid, d.ID, len(tags), maxTags)
	}
	v := d.Native
	v.Tags = tagList(tags)
	return v, p.tag(ctx, d.ID, marks)
}

func (p *Provider) release(ctx context.Context, d managed.Disk[types.Volume]) error {
	_, err := alter(ctx, p, d.ID, "DeleteTags", func(ctx context.Context, api *ec2.Client) (*ec2.DeleteTagsOutput, error) {
		// By key and value: what somebody else has written meanwhile stays.
		return api.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: []string{d.ID}, Tags: tagList(map[string]string{
			tagCluster: p.cluster, tagName: d.Name, tagKey: p.keyOf(d.Name),
		})})
	})
	if err == nil {
		p.spend(d)
	}
	return err
}

func (p *Provider) remove(ctx context.Context, d managed.Disk[types.Volume]) error {
	_, err := alter(ctx, p, d.ID, "DeleteVolume", func(ctx context.Context, api *ec2.Client) (*ec2.DeleteVolumeOutput, error) {
		return api.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: &d.ID})
	})
	switch {
	case errors.Is(err, errWrongState):
		return fmt.Errorf("%w: %w", providers.ErrBusy, err)
	case err == nil, errors.Is(err, providers.ErrNotFound):
		p.spend(d)
	}
	return err
}

// spend notes, of a volume that has lost its name, that the ClientToken which created it leads nowhere as long as EC2 keeps it in
// mind. When that is past, the token creates a volume again.
func (p *Provider) spend(d managed.Disk[types.Volume]) {
	if n, err := strconv.Atoi(d.Claim); err == nil {
		p.memory.spend(turn{d.Name, n}, tokenKept-time.Since(d.CreatedAt))
	}
}
