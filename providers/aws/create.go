package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
)

// maxTurns bounds the search for a ClientToken that makes a volume: each turn that is behind is a volume of this name that
// was made and removed within the day that EC2 remembers tokens for.
const maxTurns = 1000

// tokenOf is the ClientToken of a name's volume. EC2 answers a token that it has seen with the volume that the token made,
// so nodes that create one name at once get one volume. But it does so even if that volume has been deleted meanwhile, and
// a token whose creation failed is burnt; both for a day or so. Then it is the next turn's turn, for every node alike.
func (p *Provider) tokenOf(name string, turn int) string {
	return digest(p.cluster, name, strconv.Itoa(turn)) // 64 characters, all that a token may have
}

// Create returns the volume once EC2 calls it available.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(checkName(spec.Name), checkRecord(spec.Record), checkTags(spec.Tags)); err != nil {
		return nil, err
	}
	if spec.Size < 0 {
		return nil, fmt.Errorf("%w: the size is %d bytes", providers.ErrInvalid, spec.Size)
	}
	if v, err := p.Find(ctx, spec.Name); !errors.Is(err, providers.ErrNotFound) {
		return v, err
	}
	s, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	tags := p.marks(spec)
	gibs := gibOf(spec.Size)
	if spec.Snapshot != "" {
		from, err := p.sourceOf(ctx, spec.Snapshot)
		if err != nil {
			return nil, err
		}
		size := sdk.ToInt32(from.VolumeSize)
		if gibs = cmp.Or(gibs, int64(size)); gibs < int64(size) {
			return nil, fmt.Errorf("%w: snapshot %s holds %d GiB, more than the %d GiB asked for: leave the size out, or ask for more", providers.ErrInvalid, spec.Snapshot, size, gibs)
		}
		inherited := recordTags(recordOf(tagMap(from.Tags)))
		maps.Copy(inherited, tags)
		tags = inherited
	}
	if err := checkKind(kindOf(spec), gibs, spec.IOPS, spec.Throughput); err != nil {
		return nil, err
	}
	if len(tags)+1 > maxTags {
		return nil, fmt.Errorf("%w: the volume would have %d tags, where EC2 allows %d: ask for fewer", providers.ErrInvalid, len(tags)+1, maxTags)
	}
	in := &ec2.CreateVolumeInput{
		AvailabilityZone: sdk.String(cmp.Or(spec.Zone, s.zone)),
		VolumeType:       kindOf(spec),
		Size:             sdk.Int32(int32(gibs)),
		Iops:             orNil(spec.IOPS),
		Throughput:       orNil(spec.Throughput),
	}
	if spec.Encrypted || spec.KMSKey != "" { // otherwise the account's own default holds
		in.Encrypted = sdk.Bool(true)
	}
	if spec.KMSKey != "" {
		in.KmsKeyId = &spec.KMSKey
	}
	if spec.Snapshot != "" {
		in.SnapshotId = &spec.Snapshot
	}
	for turn := p.memory.turn(spec.Name); turn < maxTurns; turn++ {
		v, err := p.createOnce(ctx, in, spec.Name, tags, turn)
		if !errors.Is(err, errSpent) {
			return v, err
		}
		p.memory.spend(spec.Name, turn)
	}
	return nil, fmt.Errorf("%w: more than %d volumes of this name have been made and removed within a day: choose another name", providers.ErrBusy, maxTurns)
}

// errSpent says that a ClientToken makes no volume any more.
var errSpent = errors.New("this ClientToken is spent")

// createOnce makes the volume with the token of one turn, or returns the one that another node makes with it.
func (p *Provider) createOnce(ctx context.Context, in *ec2.CreateVolumeInput, name string, tags map[string]string, turn int) (*providers.Volume, error) {
	tags[tagTurn] = strconv.Itoa(turn)
	in.ClientToken = sdk.String(p.tokenOf(name, turn))
	in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeVolume, Tags: tagList(tags)}}
	made, err := call(ctx, p, "CreateVolume", func(ctx context.Context, api *ec2.Client) (*ec2.CreateVolumeOutput, error) {
		return api.CreateVolume(ctx, in)
	})
	if errors.Is(err, errTokenMismatch) {
		// Another node makes it at this moment with other options; or the token is of a volume that is gone, or burnt.
		return p.findSoon(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	id := sdk.ToString(made.VolumeId)
	if p.memory.hides(id, name) {
		return nil, errSpent
	}
	// EC2's clocks, both: how old the volume was when EC2 answered.
	answered, told := awsmiddleware.GetServerTime(made.ResultMetadata)
	old := told && answered.Sub(sdk.ToTime(made.CreateTime)) > lagging
	return p.awaitAvailable(ctx, id, name, old)
}

// findSoon is Find for a volume that reads may not show yet. It is errSpent if none appears.
func (p *Provider) findSoon(ctx context.Context, name string) (*providers.Volume, error) {
	retry := backoff{most: time.Second}
	for begin := time.Now(); ; {
		v, err := p.Find(ctx, name)
		if !errors.Is(err, providers.ErrNotFound) {
			return v, err
		}
		if time.Since(begin) > lagging {
			return nil, errSpent
		}
		if err := retry.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// awaitAvailable waits until the volume that CreateVolume answered with can be attached. It is errSpent if that is an old
// one, which the token made and which has been deleted, forgotten or renamed since.
func (p *Provider) awaitAvailable(ctx context.Context, id, name string, old bool) (*providers.Volume, error) {
	retry := backoff{most: 2 * time.Second}
	for begin := time.Now(); ; {
		v, found, err := p.byID.get(ctx, id)
		if err != nil {
			return nil, err
		}
		tags := tagMap(v.Tags)
		switch {
		case !found:
			if old || time.Since(begin) > lagging {
				return nil, errSpent
			}
		case v.State == types.VolumeStateError && !old:
			return nil, fmt.Errorf("%w: EC2 began to make %s and gave up (state %q): check that the KMS key exists, is enabled, and may be used by this node's role", providers.ErrInvalid, id, v.State)
		case !exists(v), v.State == types.VolumeStateError, tags[tagName] != name, !p.isOurs(tags):
			return nil, errSpent
		case v.State != types.VolumeStateCreating:
			p.memory.make(name, id)
			return p.describe(v), nil
		}
		if err := retry.wait(ctx); err != nil {
			return nil, fmt.Errorf("volume %s is still being created: %w", id, err)
		}
	}
}

func gibOf(bytes int64) int64 {
	if bytes > 1<<62 { // the sum below must not overflow
		return bytes / gib
	}
	return (bytes + gib - 1) / gib
}

func orNil(n int) *int32 {
	if n == 0 {
		return nil
	}
	return sdk.Int32(int32(min(n, 1<<31-1)))
}

// kindOf is the type asked for; gp3 without one, as EC2's own default, gp2, is dearer and slower.
func kindOf(spec providers.Spec) types.VolumeType {
	return types.VolumeType(cmp.Or(spec.Type, string(types.VolumeTypeGp3)))
}
