package aws

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/rest"
)

// tryPermissions asks EC2 for each action of docs/aws-policy.json whether it is allowed, by a dry run. The policy's conditions are on
// tags, so an action on a volume or a snapshot is tried on one of this cluster, if there is one.
func (p *Provider) tryPermissions(ctx context.Context) (tried string, refusals []error) {
	self, err := p.self(ctx)
	if err != nil {
		return "", []error{err}
	}
	volumes, err := p.List(ctx)
	if err != nil && len(volumes) == 0 {
		return "", []error{err}
	}
	dry, marks := sdk.Bool(true), tagList(p.marks(providers.Spec{Name: "blockvol-doctor"}))
	mark := func(kind types.ResourceType) []types.TagSpecification {
		return []types.TagSpecification{{ResourceType: kind, Tags: marks}}
	}
	trials := []func() error{
		trial(ctx, p, (*ec2.Client).DescribeVolumes, &ec2.DescribeVolumesInput{DryRun: dry, MaxResults: sdk.Int32(5)}),
		trial(ctx, p, (*ec2.Client).DescribeVolumesModifications, &ec2.DescribeVolumesModificationsInput{DryRun: dry, MaxResults: sdk.Int32(5)}),
		trial(ctx, p, (*ec2.Client).DescribeSnapshots, &ec2.DescribeSnapshotsInput{DryRun: dry, OwnerIds: []string{"self"}, MaxResults: sdk.Int32(5)}),
		trial(ctx, p, (*ec2.Client).DescribeInstances, &ec2.DescribeInstancesInput{DryRun: dry, Filters: filter("instance-id", self.ID)}),
		trial(ctx, p, (*ec2.Client).DescribeInstanceTypes, &ec2.DescribeInstanceTypesInput{DryRun: dry, InstanceTypes: []types.InstanceType{types.InstanceTypeM5Large}}),
		trial(ctx, p, (*ec2.Client).CreateVolume, &ec2.CreateVolumeInput{
			DryRun: dry, AvailabilityZone: &self.Zone, Size: sdk.Int32(1), VolumeType: types.VolumeTypeGp3, TagSpecifications: mark(types.ResourceTypeVolume),
		}),
	}
	untried := ""
	if len(volumes) == 0 {
		untried = "; those that change a volume can be tried when the cluster has one"
	} else {
		id := &volumes[0].ID
		trials = append(trials,
			trial(ctx, p, (*ec2.Client).AttachVolume, &ec2.AttachVolumeInput{DryRun: dry, VolumeId: id, InstanceId: &self.ID, Device: &deviceNames[0]}),
			trial(ctx, p, (*ec2.Client).DetachVolume, &ec2.DetachVolumeInput{DryRun: dry, VolumeId: id, InstanceId: &self.ID}),
			trial(ctx, p, (*ec2.Client).DeleteVolume, &ec2.DeleteVolumeInput{DryRun: dry, VolumeId: id}),
			trial(ctx, p, (*ec2.Client).ModifyVolume, &ec2.ModifyVolumeInput{DryRun: dry, VolumeId: id, Size: sdk.Int32(int32(providers.InGiB(volumes[0].Size)) + 1)}),
			trial(ctx, p, (*ec2.Client).CreateTags, &ec2.CreateTagsInput{DryRun: dry, Resources: []string{*id}, Tags: marks}),
			trial(ctx, p, (*ec2.Client).DeleteTags, &ec2.DeleteTagsInput{DryRun: dry, Resources: []string{*id}, Tags: marks}),
			trial(ctx, p, (*ec2.Client).CreateSnapshot, &ec2.CreateSnapshotInput{DryRun: dry, VolumeId: id, TagSpecifications: mark(types.ResourceTypeSnapshot)}),
		)
	}
	if taken, err := p.listSnapshots(ctx); err == nil && len(taken) > 0 {
		trials = append(trials,
			trial(ctx, p, (*ec2.Client).DeleteSnapshot, &ec2.DeleteSnapshotInput{DryRun: dry, SnapshotId: taken[0].SnapshotId}),
			trial(ctx, p, (*ec2.Client).CreateVolume, &ec2.CreateVolumeInput{
				DryRun: dry, AvailabilityZone: &self.Zone, SnapshotId: taken[0].SnapshotId, VolumeType: types.VolumeTypeGp3, TagSpecifications: mark(types.ResourceTypeVolume),
			}),
		)
	}
	refused := make([]error, len(trials))
	var all sync.WaitGroup
	for i, try := range trials {
		all.Go(func() { refused[i] = try() })
	}
	all.Wait()
	told := make(map[string]bool) // permissions that are missing: several actions may need one
	for _, err := range refused {
		var denied *deniedError
		if errors.As(err, &denied) {
			if told[denied.lacks] {
				continue
			}
			told[denied.lacks] = true
		}
		if err != nil {
			refusals = append(refusals, err)
		}
	}
	return fmt.Sprintf("EC2 allows the %d actions that were tried in dry runs%s", len(trials), untried), refusals
}

// trial returns a function that makes a request which is a dry run. EC2 checks permissions first: if it refuses the request for
// another reason, the action is allowed.
func trial[I, O any](ctx context.Context, p *Provider, send method[I, O], in *I) func() error {
	return func() error {
		_, err := call(ctx, p, send, in)
		if errors.Is(err, errDenied) || errors.Is(err, providers.ErrUnavailable) || errors.Is(err, providers.ErrCredentials) || ctx.Err() != nil {
			return err
		}
		return nil
	}
}

// clock is managed.Cloud.Clock.
func (p *Provider) clock() (ahead time.Duration, known bool) {
	last := p.ahead.Load()
	if last == nil {
		return 0, false
	}
	return *last, true
}

// noteClock notes what each answer says of EC2's clock.
func (p *Provider) noteClock(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("noteClock", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
		asked := time.Now()
		out, metadata, err := next.HandleDeserialize(ctx, in)
		if answer, is := out.RawResponse.(*smithyhttp.Response); is && answer.Response != nil {
			if ahead, known := rest.Ahead(answer.Header, asked); known {
				p.ahead.Store(&ahead)
			}
		}
		return out, metadata, err
	}), middleware.After)
}
