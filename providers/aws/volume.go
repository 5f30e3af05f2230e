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

// describeVolumes returns the volumes of the region that match the filter. EC2 pages before it filters, so a few volumes of a large
// account may be spread over many pages: with a perPage of nil they come in one.
func (p *Provider) describeVolumes(ctx context.Context, by []types.Filter, perPage *int32) ([]types.Volume, error) {
	return pages(ctx, p, (*ec2.Client).DescribeVolumes, func(next *string) *ec2.DescribeVolumesInput {
		return &ec2.DescribeVolumesInput{Filters: by, MaxResults: perPage, NextToken: next}
	}, func(page *ec2.DescribeVolumesOutput) ([]types.Volume, *string) { return page.Volumes, page.NextToken })
}

// named returns volumes of all zones.
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

// all returns the volumes with the cluster's tag.
func (p *Provider) all(ctx context.Context) ([]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("tag:"+tagCluster, escape(p.cfg.Cluster)), sdk.Int32(500))
	return slices.DeleteFunc(all, func(v types.Volume) bool { return !exists(v) }), err
}

// held returns the volumes with the cluster's tag that are attached to the instance. The driver asks for its own when it starts, before
// anybody waits: so held also reads what an attach needs, for the first mount to be faster. If that fails, attach reads it.
func (p *Provider) held(ctx context.Context, node string) ([]types.Volume, error) {
	by := append(filter("tag:"+tagCluster, escape(p.cfg.Cluster)), filter("attachment.instance-id", node)...)
	held, err := p.describeVolumes(ctx, by, nil)
	if s, known := p.session.Known(); err == nil && known && s.instance == node {
		_ = p.readSlots(ctx, p.slotsOf(node), node)
	}
	return slices.DeleteFunc(held, func(v types.Volume) bool { return !exists(v) }), err
}

// known returns the volumes with any of blockvol's tags.
func (p *Provider) known(ctx context.Context) ([]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("tag-key", tagPrefix+"*"), sdk.Int32(500))
	return slices.DeleteFunc(all, func(v types.Volume) bool { return !exists(v) }), err
}

// volumesByID uses a filter, since one unknown ID among VolumeIds fails the whole request.
func (p *Provider) volumesByID(ctx context.Context, ids []string) (map[string]types.Volume, error) {
	all, err := p.describeVolumes(ctx, filter("volume-id", ids...), nil)
	found := make(map[string]types.Volume)
	for _, v := range all {
		found[sdk.ToString(v.VolumeId)] = v
	}
	return found, err
}

// exists returns false for a volume that EC2 deletes or has deleted.
func exists(v types.Volume) bool {
	return v.State != types.VolumeStateDeleting && v.State != types.VolumeStateDeleted
}

// isNamed returns whether the volume exists as this cluster's volume of that name, according to the answer and to what this process
// has written since.
func (p *Provider) isNamed(v types.Volume, name string) bool {
	d := p.show(v)
	return exists(v) && p.IsOurs(d) && d.Name == name && !p.Hides(d)
}

// unusable returns an error for a volume that has failed, or that EC2 would attach to several instances at once: blockvol relies on
// EC2 to refuse the second. Such a volume is not called missing, since it may hold data.
func unusable(v types.Volume) error {
	id := sdk.ToString(v.VolumeId)
	switch {
	case sdk.ToBool(v.MultiAttachEnabled):
		return fmt.Errorf("%w: %s allows Multi-Attach, so several instances may write to it, and blockvol needs volumes with one writer: detach it from all instances but one, and change it with aws ec2 modify-volume --volume-id %s --no-multi-attach-enabled (io2 only)", providers.ErrInvalid, id, id)
	case v.State != types.VolumeStateError:
		return nil
	}
	return fmt.Errorf("EC2 calls volume %s %q: if it has just been created, EC2 could not create it and removes it after a while; otherwise its disk has failed: restore a snapshot, and delete it with aws ec2 delete-volume --volume-id %s", id, v.State, id)
}

// escape escapes the wildcards * and ? of a filter's value.
func escape(value string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`).Replace(value)
}

// show translates EC2's description.
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
		Cluster: tags[tagCluster], Former: managed.Former{Cluster: tags[tagFormer+"cluster"], Name: tags[tagFormer+"name"]}, Claim: tags[tagTurn], Damaged: unusable(from), Creating: from.State == types.VolumeStateCreating, Native: from,
	}
	_, d.Marked = tags[tagCluster]
	if d.Cluster == p.cfg.Cluster && tags[tagKey] != p.keyOf(d.Name) {
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
	if known, is := p.slots.Load(d.Attachment.Node); is {
		known.(*slots).observe(d.ID, deviceOn(from, d.Attachment.Node)) //nolint:forcetypeassert // nothing else is stored
	}
	return d
}

// attachmentOf returns one attachment: unusable excludes volumes with several.
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
		default: // detaching; or busy: a detach that the instance's kernel prevents
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

// get returns any volume by its ID. Concurrent calls share a request.
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

// mark writes one entry of the Record as a tag.
func (p *Provider) mark(ctx context.Context, d managed.Disk[types.Volume], key, value string) error {
	return p.tag(ctx, d.ID, map[string]string{tagRecord + key: value})
}

func (p *Provider) tag(ctx context.Context, id string, tags map[string]string) error {
	_, err := alter(ctx, p, id, (*ec2.Client).CreateTags, &ec2.CreateTagsInput{Resources: []string{id}, Tags: tagList(tags)})
	return err
}

// claim makes an existing volume ours by its tags.
func (p *Provider) claim(ctx context.Context, d managed.Disk[types.Volume], spec providers.Spec) (types.Volume, error) {
	tags, marks := tagMap(d.Native.Tags), p.marks(spec)
	if !p.IsOurs(d) {
		marks[tagTurn] = "adopted " + time.Now().UTC().Format(time.RFC3339Nano) // no ClientToken's turn, and unique
	}
	if _, named := tags[tagShown]; named && spec.Tags[tagShown] == "" {
		delete(marks, tagShown)
	}
	maps.Copy(tags, marks)
	if len(tags) > maxTags {
		return d.Native, fmt.Errorf("%w: %s would have %d tags, and EC2 allows %d: remove some", providers.ErrInvalid, d.ID, len(tags), maxTags)
	}
	v := d.Native
	v.Tags = tagList(tags)
	return v, p.tag(ctx, d.ID, marks)
}

func (p *Provider) release(ctx context.Context, d managed.Disk[types.Volume]) error {
	// Before: the policy allows no tags on a volume that is nobody's. Where there is no room for two more, the volume goes without.
	former := map[string]string{tagFormer + "cluster": d.Former.Cluster, tagFormer + "name": d.Former.Name}
	if err := p.tag(ctx, d.ID, former); err != nil && !errors.Is(err, providers.ErrNoSpace) {
		return err
	}
	// By key and value: what another node has written in the meantime stays.
	tags := tagList(map[string]string{tagCluster: p.cfg.Cluster, tagName: d.Name, tagKey: p.keyOf(d.Name)})
	_, err := alter(ctx, p, d.ID, (*ec2.Client).DeleteTags, &ec2.DeleteTagsInput{Resources: []string{d.ID}, Tags: tags})
	if err == nil {
		p.releaseName(d)
	}
	return err
}

func (p *Provider) remove(ctx context.Context, d managed.Disk[types.Volume]) error {
	_, err := alter(ctx, p, d.ID, (*ec2.Client).DeleteVolume, &ec2.DeleteVolumeInput{VolumeId: &d.ID})
	switch {
	case errors.Is(err, errWrongState):
		return fmt.Errorf("%w: %w", providers.ErrBusy, err)
	case err == nil, errors.Is(err, providers.ErrNotFound):
		p.releaseName(d)
	}
	return err
}

// releaseName notes that the ClientToken of a volume without its name creates no volume for as long as EC2 remembers it.
func (p *Provider) releaseName(d managed.Disk[types.Volume]) {
	if n, err := strconv.Atoi(d.Claim); err == nil {
		p.setUsed(token{d.Name, n}, tokenSkipped-time.Since(d.CreatedAt))
	}
}
