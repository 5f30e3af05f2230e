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
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
)

var snapshotID = regexp.MustCompile(`^snap-[0-9a-f]{8}([0-9a-f]{9})?$`)

// describeSnapshots returns the account's own snapshots that meet the filter.
func (p *Provider) describeSnapshots(ctx context.Context, by types.Filter) ([]types.Snapshot, error) {
	return pages(ctx, p, "DescribeSnapshots", func(ctx context.Context, api *ec2.Client, next *string) ([]types.Snapshot, *string, error) {
		page, err := api.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{
			Filters: []types.Filter{by}, OwnerIds: []string{"self"}, MaxResults: sdk.Int32(1000), NextToken: next,
		})
		if err != nil {
			return nil, nil, err
		}
		return page.Snapshots, page.NextToken, nil
	})
}

// Snapshot returns when the snapshot is complete: until then it is not known whether it will ever be, and the volume must
// stay. EBS takes the volume as it is at the moment of the request, in use or not.
func (p *Provider) Snapshot(ctx context.Context, id, description string) (*providers.Snapshot, error) {
	v, err := p.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	origin := labels.Digest(id, description)
	same, err := p.describeSnapshots(ctx, filter("tag:"+tagOrigin, origin))
	if err != nil {
		return nil, err
	}
	for _, s := range same {
		if s.State != types.SnapshotStateError {
			return p.awaitSnapshot(ctx, s)
		}
	}
	tags := recordTags(v.Record)
	maps.Copy(tags, map[string]string{tagShown: v.Name, tagCluster: p.cluster, tagName: v.Name, tagOrigin: origin})
	// CreateSnapshot knows no ClientToken: sent again after a lost answer it would take a second one.
	made, err := once(ctx, p, "CreateSnapshot", func(ctx context.Context, api *ec2.Client) (*ec2.CreateSnapshotOutput, error) {
		return api.CreateSnapshot(ctx, &ec2.CreateSnapshotInput{
			VolumeId: &id, Description: sdk.String(sanitize.Clip(description)),
			TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeSnapshot, Tags: tagList(tags)}},
		})
	})
	if err != nil {
		return nil, err
	}
	return p.awaitSnapshot(ctx, types.Snapshot{
		SnapshotId: made.SnapshotId, VolumeId: made.VolumeId, VolumeSize: made.VolumeSize, StartTime: made.StartTime, State: made.State,
	})
}

// awaitSnapshot waits until the snapshot is complete, and returns it.
func (p *Provider) awaitSnapshot(ctx context.Context, s types.Snapshot) (*providers.Snapshot, error) {
	retry := pace.Backoff{Most: 15 * time.Second}
	id := sdk.ToString(s.SnapshotId)
	for {
		switch s.State {
		case types.SnapshotStateCompleted:
			return snapshotOf(s), nil
		case types.SnapshotStateError:
			return nil, fmt.Errorf("snapshot %s has failed: EC2 says %q", id, sanitize.Clip(sdk.ToString(s.StateMessage)))
		default:
		}
		now, err := p.describeSnapshots(ctx, filter("snapshot-id", id))
		switch {
		case err != nil:
			return nil, err
		case len(now) > 0: // else a read that lags
			s = now[0]
		}
		if s.State == types.SnapshotStateCompleted {
			continue
		}
		if err := retry.Wait(ctx); err != nil {
			return nil, fmt.Errorf("snapshot %s is not complete yet (%s so far): %w", id, sdk.ToString(s.Progress), err)
		}
	}
}

func snapshotOf(s types.Snapshot) *providers.Snapshot {
	return &providers.Snapshot{
		ID: sdk.ToString(s.SnapshotId), Volume: sdk.ToString(s.VolumeId), Size: int64(sdk.ToInt32(s.VolumeSize)) * gib, CreatedAt: sdk.ToTime(s.StartTime).UTC(),
	}
}

// DeleteSnapshot destroys a snapshot of this cluster.
func (p *Provider) DeleteSnapshot(ctx context.Context, id string) error {
	if !snapshotID.MatchString(id) {
		return ctx.Err()
	}
	all, err := p.describeSnapshots(ctx, filter("snapshot-id", id))
	if err != nil || len(all) == 0 || tagMap(all[0].Tags)[tagCluster] != p.cluster {
		return err
	}
	_, err = call(ctx, p, "DeleteSnapshot", func(ctx context.Context, api *ec2.Client) (*ec2.DeleteSnapshotOutput, error) {
		return api.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: &id})
	})
	if code := codeOf(err); code == "InvalidSnapshot.NotFound" {
		return nil
	}
	return err
}

// sourceOf returns a snapshot that a volume can be made from, once it is complete: one of this cluster, or one that is
// nobody's, as backups made by other means are.
func (p *Provider) sourceOf(ctx context.Context, id string) (types.Snapshot, error) {
	if !snapshotID.MatchString(id) {
		return types.Snapshot{}, fmt.Errorf("%w: snapshot %q: an id looks like snap-0123456789abcdef0", providers.ErrInvalid, id)
	}
	all, err := p.describeSnapshots(ctx, filter("snapshot-id", id))
	if err != nil {
		return types.Snapshot{}, err
	}
	if len(all) == 0 {
		return types.Snapshot{}, fmt.Errorf("%w: EC2 has no snapshot %s of this account in this region", providers.ErrInvalid, id)
	}
	if owner, owned := tagMap(all[0].Tags)[tagCluster]; owned && owner != p.cluster {
		return types.Snapshot{}, fmt.Errorf("%w: snapshot %s is of cluster %q: create the volume there", providers.ErrInvalid, id, owner)
	}
	if _, err := p.awaitSnapshot(ctx, all[0]); err != nil {
		return types.Snapshot{}, err
	}
	return all[0], nil
}
