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

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// modifiedIOPS is the IOPS of a volume that becomes io1 or io2 if the request has none (API reference, ModifyVolume).
const modifiedIOPS = 3000

// Modify returns when the change is in effect. EC2 may optimise the volume for hours afterwards, and refuses other changes of it
// until then; it takes four changes in a day (API reference, ModifyVolume).
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	d, err := p.GetOurs(ctx, id)
	if err != nil {
		return nil, err
	}
	v := &d.Volume
	kind := types.VolumeType(cmp.Or(change.Type, v.Details["type"]))
	gibs := cmp.Or(providers.InGiB(change.Size), v.Size/gib)
	iops, throughput := change.IOPS, change.Throughput
	if string(kind) == v.Details["type"] {
		iops = cmp.Or(iops, number(v.Details["iops"]))
		throughput = cmp.Or(throughput, number(v.Details["throughput"]))
		if k, _ := kindNamed(kind); k.iops.most == 0 { // gp2 shows its IOPS, which cannot be chosen
			iops = change.IOPS
		}
	}
	switch {
	case change.Size < 0 || gibs*gib < v.Size:
		return nil, fmt.Errorf("%w: volume %s has %d GiB, and EBS volumes cannot shrink: ask for more, or create a new volume and copy the data", providers.ErrInvalid, id, v.Size/gib)
	case gibs*gib == v.Size && isAs(change, v.Details):
		return v, nil
	}
	if k, _ := kindNamed(kind); k.iopsRequired && iops == 0 {
		iops = modifiedIOPS
	}
	if err := checkKind(kind, gibs, iops, throughput); err != nil {
		return nil, err
	}
	in := &ec2.ModifyVolumeInput{VolumeId: &id, Iops: orNil(change.IOPS), Throughput: orNil(change.Throughput)}
	if change.Size != 0 { // otherwise not: the size that a read shows may be old and smaller
		in.Size = sdk.Int32(int32(gibs))
	}
	if change.Type != "" {
		in.VolumeType = kind
	}
	answer, err := alter(ctx, p, id, (*ec2.Client).ModifyVolume, in)
	if err != nil && !errors.Is(err, errModifying) && !errors.Is(err, errModifiedNow) {
		return nil, err
	}
	var began time.Time
	if err == nil && answer.VolumeModification != nil {
		began = sdk.ToTime(answer.VolumeModification.StartTime)
	}
	refusal := err // possibly of the repetition of a request whose answer was lost
	if err := p.awaitModified(ctx, id, in, began, refusal); err != nil {
		return nil, err
	}
	if change.Size != 0 {
		p.Resized(id, gibs*gib)
	}
	// The description of the volume may be older than that of its modification.
	retry := pause.Backoff{Most: time.Second}
	for settled := time.Now(); ; {
		asked := time.Now()
		d, err := p.GetOurs(ctx, id)
		if err != nil || asked.Sub(settled) >= providers.MaxStale || isAs(change, d.Details) {
			return &d.Volume, err
		}
		if err := retry.Wait(ctx); err != nil {
			return nil, err
		}
	}
}

// awaitModified waits until the change, which began at that time, is in effect. After a refusal, EC2's last change must be this one.
func (p *Provider) awaitModified(ctx context.Context, id string, in *ec2.ModifyVolumeInput, began time.Time, refusal error) error {
	retry := pause.Backoff{Most: 5 * time.Second}
	for {
		answer, err := call(ctx, p, (*ec2.Client).DescribeVolumesModifications, &ec2.DescribeVolumesModificationsInput{Filters: filter("volume-id", id)})
		if err != nil {
			return err
		}
		var now types.VolumeModification // the latest
		for _, m := range answer.VolumesModifications {
			if now.StartTime == nil || m.StartTime != nil && m.StartTime.After(*now.StartTime) {
				now = m
			}
		}
		is := now.StartTime != nil && !now.StartTime.Before(began) && // otherwise the read is too old
			(in.Size == nil || sdk.ToInt32(now.TargetSize) == *in.Size) && (in.Iops == nil || sdk.ToInt32(now.TargetIops) == *in.Iops) &&
			(in.Throughput == nil || sdk.ToInt32(now.TargetThroughput) == *in.Throughput) && (in.VolumeType == "" || now.TargetVolumeType == in.VolumeType)
		switch {
		case !is && refusal != nil:
			since := ""
			if now.StartTime != nil {
				since = fmt.Sprintf(" (the last one began at %s, so another one is accepted by %s)", now.StartTime.UTC().Format(time.RFC3339), now.StartTime.UTC().Add(24*time.Hour).Format(time.RFC3339))
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

// isAs returns whether type, IOPS and throughput of a volume are as in the change. The size is not compared.
func isAs(change providers.Change, details map[string]string) bool {
	same := func(asked int, shown string) bool { return asked == 0 || strconv.Itoa(asked) == shown }
	return cmp.Or(change.Type, details["type"]) == details["type"] && same(change.IOPS, details["iops"]) && same(change.Throughput, details["throughput"])
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // EC2's own number, or empty
	return n
}
