package aws

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

var snapshotID = regexp.MustCompile(`^snap-[0-9a-f]{8}([0-9a-f]{9})?$`)

// snapshots returns EC2's functions for snapshots. EBS copies the volume as it is at the time of the request, in use or not. Until the
// snapshot is complete it may fail, and needs the volume.
func (p *Provider) snapshots() managed.SnapshotCloud[types.Volume, types.Snapshot] {
	return managed.SnapshotCloud[types.Volume, types.Snapshot]{
		IsID: snapshotID.MatchString, IDForm: "looks like snap-0123456789abcdef0", MaxPause: 15 * time.Second, Instant: true,
		Show: showSnapshot, Taken: p.snapshotsTaken, Take: p.takeSnapshot, List: p.listSnapshots, Get: p.getSnapshot, Delete: p.deleteSnapshot,
	}
}

func showSnapshot(from types.Snapshot) managed.Snapshot[types.Snapshot] {
	tags := tagMap(from.Tags)
	cluster, marked := tags[tagCluster]
	s := managed.Snapshot[types.Snapshot]{
		Snapshot: providers.Snapshot{
			ID: sdk.ToString(from.SnapshotId), Volume: sdk.ToString(from.VolumeId), Name: tags[tagName], Size: int64(sdk.ToInt32(from.VolumeSize)) * gib,
			CreatedAt: sdk.ToTime(from.StartTime).UTC(), State: providers.SnapshotCreating, Detail: sanitize.Clip(sdk.ToString(from.Progress)), Record: recordOf(tags),
		},
		Cluster: cluster, Marked: marked, Native: from,
	}
	switch from.State {
	case types.SnapshotStateCompleted:
		s.State, s.Detail = providers.SnapshotComplete, ""
	case types.SnapshotStateError:
		s.State, s.Detail = providers.SnapshotFailed, sanitize.Clip(sdk.ToString(from.StateMessage))
	case types.SnapshotStatePending, types.SnapshotStateRecoverable, types.SnapshotStateRecovering:
	}
	return s
}

// describeSnapshots returns the account's own snapshots that match the filter.
func (p *Provider) describeSnapshots(ctx context.Context, by []types.Filter) ([]types.Snapshot, error) {
	return pages(ctx, p, (*ec2.Client).DescribeSnapshots, func(next *string) *ec2.DescribeSnapshotsInput {
		return &ec2.DescribeSnapshotsInput{Filters: by, OwnerIds: []string{"self"}, MaxResults: sdk.Int32(1000), NextToken: next}
	}, func(page *ec2.DescribeSnapshotsOutput) ([]types.Snapshot, *string) {
		return page.Snapshots, page.NextToken
	})
}

func (p *Provider) snapshotsTaken(ctx context.Context, volume, description string) ([]types.Snapshot, error) {
	return p.describeSnapshots(ctx, filter("tag:"+tagOrigin, labels.Digest(volume, description)))
}

func (p *Provider) listSnapshots(ctx context.Context) ([]types.Snapshot, error) {
	return p.describeSnapshots(ctx, filter("tag:"+tagCluster, p.cfg.Cluster))
}

func (p *Provider) takeSnapshot(ctx context.Context, d managed.Disk[types.Volume], description string) (types.Snapshot, error) {
	tags := recordTags(d.Record)
	maps.Copy(tags, map[string]string{tagShown: d.Name, tagCluster: p.cfg.Cluster, tagName: d.Name, tagOrigin: labels.Digest(d.ID, description)})
	// CreateSnapshot has no ClientToken: repeated after a lost answer, it would take a second snapshot.
	made, err := once(ctx, p, (*ec2.Client).CreateSnapshot, &ec2.CreateSnapshotInput{
		VolumeId: &d.ID, Description: sdk.String(sanitize.Clip(description)),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeSnapshot, Tags: tagList(tags)}},
	})
	if err != nil {
		return types.Snapshot{}, err
	}
	return types.Snapshot{
		SnapshotId: made.SnapshotId, VolumeId: made.VolumeId, VolumeSize: made.VolumeSize, StartTime: made.StartTime, State: made.State, Tags: tagList(tags),
	}, nil
}

func (p *Provider) getSnapshot(ctx context.Context, id string) (types.Snapshot, error) {
	all, err := p.describeSnapshots(ctx, filter("snapshot-id", id))
	if err != nil {
		return types.Snapshot{}, err
	}
	if len(all) == 0 {
		return types.Snapshot{}, fmt.Errorf("%w: EC2 shows no snapshot %s", providers.ErrNotFound, id)
	}
	return all[0], nil
}

func (p *Provider) deleteSnapshot(ctx context.Context, s managed.Snapshot[types.Snapshot]) error {
	_, err := call(ctx, p, (*ec2.Client).DeleteSnapshot, &ec2.DeleteSnapshotInput{SnapshotId: &s.ID})
	if codeOf(err) == "InvalidSnapshot.NotFound" {
		return nil
	}
	return err
}
