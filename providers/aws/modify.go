package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// modifiedIOPS is what EC2 gives a volume that becomes io1 or io2 without a word on IOPS (API reference, ModifyVolume).
const modifiedIOPS = 3000

// Modify returns once EC2 has put the change into effect; what it calls optimising may go on for hours and is in nobody's
// way, but that EC2 takes no further change of this volume until then, and four in a day (API reference, ModifyVolume).
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	v, err := p.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	kind := types.VolumeType(cmp.Or(change.Type, v.Details["type"]))
	gibs := cmp.Or(providers.InGiB(change.Size), v.Size/gib)
	iops, throughput := change.IOPS, change.Throughput
	if string(kind) == v.Details["type"] {
		iops = cmp.Or(iops, number(v.Details["iops"]))
		throughput = cmp.Or(throughput, number(v.Details["throughput"]))
		if k, _ := kindNamed(kind); k.iops.most == 0 { // gp2 shows what it has, and nothing can be chosen
			iops = change.IOPS
		}
	}
	switch {
	case change.Size < 0 || gibs*gib < v.Size:
		return nil, fmt.Errorf("%w: volume %s has %d GiB, and EBS volumes cannot shrink: ask for more, or make a new volume and copy", providers.ErrInvalid, id, v.Size/gib)
	case string(kind) == v.Details["type"] && gibs*gib == v.Size && same(change.IOPS, v.Details["iops"]) && same(change.Throughput, v.Details["throughput"]):
		return v, nil
	}
	if k, _ := kindNamed(kind); k.iopsNeeded && iops == 0 {
		iops = modifiedIOPS
	}
	if err := checkKind(kind, gibs, iops, throughput); err != nil {
		return nil, err
	}
	in := &ec2.ModifyVolumeInput{VolumeId: &id, Iops: orNil(change.IOPS), Throughput: orNil(change.Throughput)}
	if change.Size != 0 { // otherwise what a read shows may be smaller than it is
		in.Size = sdk.Int32(int32(gibs))
	}
	if change.Type != "" {
		in.VolumeType = kind
	}
	begun, err := alter(ctx, p, id, "ModifyVolume", func(ctx context.Context, api *ec2.Client) (types.VolumeModification, error) {
		answer, err := api.ModifyVolume(ctx, in)
		if err != nil || answer.VolumeModification == nil {
			return types.VolumeModification{}, err
		}
		return *answer.VolumeModification, nil
	})
	if err != nil && !errors.Is(err, errModifying) && !errors.Is(err, errModifiedNow) {
		return nil, err
	}
	refusal := err // perhaps of the echo of a request whose answer was lost
	if err := p.awaitModified(ctx, id, in, sdk.ToTime(begun.StartTime), refusal); err != nil {
		return nil, err
	}
	if change.Size != 0 {
		p.Resized(id, gibs*gib)
	}
	// The volume's own description may lag behind that of its modification.
	retry := pace.Backoff{Most: time.Second}
	for settled := time.Now(); ; {
		asked := time.Now()
		v, err := p.volume(ctx, id)
		if err != nil || asked.Sub(settled) >= managed.Lag ||
			(change.Type == "" || v.Details["type"] == change.Type) && same(change.IOPS, v.Details["iops"]) && same(change.Throughput, v.Details["throughput"]) {
			return v, err
		}
		if err := retry.Wait(ctx); err != nil {
			return nil, err
		}
	}
}

// awaitModified waits until the change is in effect, which began then. After a refusal, EC2 must be about that very change.
func (p *Provider) awaitModified(ctx context.Context, id string, in *ec2.ModifyVolumeInput, began time.Time, refusal error) error {
	retry := pace.Backoff{Most: 5 * time.Second}
	for {
		answer, err := call(ctx, p, "DescribeVolumesModifications", func(ctx context.Context, api *ec2.Client) (*ec2.DescribeVolumesModificationsOutput, error) {
			return api.DescribeVolumesModifications(ctx, &ec2.DescribeVolumesModificationsInput{Filters: []types.Filter{filter("volume-id", id)}})
		})
		if err != nil {
			return err
		}
		var now types.VolumeModification // the latest
		for _, m := range answer.VolumesModifications {
			if now.StartTime == nil || m.StartTime != nil && m.StartTime.After(*now.StartTime) {
				now = m
			}
		}
		is := now.StartTime != nil && !now.StartTime.Before(began) && // what began before is of a read that lags
			(in.Size == nil || sdk.ToInt32(now.TargetSize) == *in.Size) && (in.Iops == nil || sdk.ToInt32(now.TargetIops) == *in.Iops) &&
			(in.Throughput == nil || sdk.ToInt32(now.TargetThroughput) == *in.Throughput) && (in.VolumeType == "" || now.TargetVolumeType == in.VolumeType)
		switch {
		case !is && refusal != nil:
			since := ""
			if now.StartTime != nil {
				since = fmt.Sprintf(" (the last one began at %s)", now.StartTime.UTC().Format(time.RFC3339))
			}
			return fmt.Errorf("%w: %w: EBS takes one change of a volume at a time, and four in a day%s: try again later", providers.ErrBusy, refusal, since)
		case is && now.ModificationState == types.VolumeModificationStateFailed:
			return fmt.Errorf("EC2 could not change volume %s: %s", id, sanitize.Clip(sdk.ToString(now.StatusMessage)))
		case is && now.ModificationState != types.VolumeModificationStateModifying:
			return nil
		}
		if err := retry.Wait(ctx); err != nil {
			return fmt.Errorf("the change of volume %s is still going on: %w", id, err)
		}
	}
}

// same tells whether nothing was asked for, or what there is.
func same(asked int, is string) bool { return asked == 0 || strconv.Itoa(asked) == is }

func number(s string) int {
	n, _ := strconv.Atoi(s) // EC2's own number, or none
	return n
}
