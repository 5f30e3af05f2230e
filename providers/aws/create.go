package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/pace"
)

// maxTurns bounds the search for a ClientToken that makes a volume: each turn that is behind is a volume of this name that
// was made and removed within the day that EC2 remembers tokens for.
const maxTurns = 1000

// How long a turn that leads nowhere is passed over without asking EC2. It must not be longer than EC2 remembers the token, or
// a node that has not seen the turn would make a volume with it while this one makes another with the next. AWS promises a day
// or so; where it is not known when the token was used, only as long as an operator tries again.
const (
	tokenKept     = 6 * time.Hour
	tokenSeenUsed = 10 * time.Minute
)

// tokenOf is the ClientToken of a name's volume. EC2 answers a token that it has seen with the volume that the token made,
// so nodes that create one name at once get one volume. But it does so even if that volume has been deleted meanwhile, and
// a token whose creation failed is burnt; both for a day or so. Then it is the next turn's turn, for every node alike.
func (p *Provider) tokenOf(name string, turn int) string {
	return labels.Digest(p.cluster, name, strconv.Itoa(turn)) // 64 characters, all that a token may have
}

// create returns the volume once EC2 calls it available.
func (p *Provider) create(ctx context.Context, spec providers.Spec, _ int64, _ int) (types.Volume, error) {
	in, tags, err := p.order(ctx, spec)
	if err != nil {
		return types.Volume{}, err
	}
	for n := range maxTurns {
		if t := (turn{spec.Name, n}); !p.memory.isSpent(t) {
			v, err := p.createOnce(ctx, in, t, tags)
			if !errors.Is(err, errSpent) {
				return v, err
			}
		}
	}
	return types.Volume{}, fmt.Errorf("%w: more than %d volumes of this name have been made and removed within a day: choose another name", providers.ErrBusy, maxTurns)
}

// await waits until a volume that another node creates is available.
func (p *Provider) await(ctx context.Context, d managed.Disk[types.Volume]) (types.Volume, error) {
	v, err := p.awaitAvailable(ctx, d.Native, d.Name, false)
	if errors.Is(err, errSpent) {
		err = fmt.Errorf("%w: a volume named %q was there and is gone at the same moment", providers.ErrBusy, d.Name)
	}
	return v, err
}

// order puts the specification into EC2's words, and refuses what EC2 does not sell.
func (p *Provider) order(ctx context.Context, spec providers.Spec) (*ec2.CreateVolumeInput, map[string]string, error) {
	refuse := func(format string, args ...any) (*ec2.CreateVolumeInput, map[string]string, error) {
		return nil, nil, fmt.Errorf("%w: %s", providers.ErrInvalid, fmt.Sprintf(format, args...))
	}
	s, err := p.session(ctx)
	if err != nil {
		return nil, nil, err
	}
	gibs := providers.InGiB(spec.Size)
	if spec.Snapshot != "" {
		from, size, err := p.Source(ctx, spec, gibs)
		if err != nil {
			return nil, nil, err
		}
		gibs, spec.Record = size, from.Record
	}
	tags := p.marks(spec)
	if err := checkKind(kindOf(spec), gibs, spec.IOPS, spec.Throughput); err != nil {
		return nil, nil, err
	}
	if len(tags)+1 > maxTags {
		return refuse("the volume would have %d tags, where EC2 allows %d: ask for fewer", len(tags)+1, maxTags)
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
	return in, tags, nil
}

// errSpent says that a ClientToken makes no volume any more.
var errSpent = errors.New("this ClientToken is spent")

// createOnce makes the volume with the token of one turn, or returns the one that another node makes with it.
func (p *Provider) createOnce(ctx context.Context, in *ec2.CreateVolumeInput, t turn, tags map[string]string) (types.Volume, error) {
	tags[tagTurn] = strconv.Itoa(t.n)
	in.ClientToken = sdk.String(p.tokenOf(t.name, t.n))
	in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeVolume, Tags: tagList(tags)}}
	made, err := call(ctx, p, "CreateVolume", func(ctx context.Context, api *ec2.Client) (*ec2.CreateVolumeOutput, error) {
		return api.CreateVolume(ctx, in)
	})
	if errors.Is(err, errTokenMismatch) {
		// Another node makes it at this moment with other options; or the token is of a volume that is gone, or burnt.
		d, err := p.findSoon(ctx, t.name)
		if errors.Is(err, errSpent) {
			p.memory.spend(t, tokenSeenUsed)
		}
		if err != nil {
			return types.Volume{}, err
		}
		return p.awaitAvailable(ctx, d.Native, t.name, false)
	}
	if err != nil {
		return types.Volume{}, err
	}
	// EC2's clocks, both: how old the volume was when EC2 answered.
	answered, told := awsmiddleware.GetServerTime(made.ResultMetadata)
	age := max(0, answered.Sub(sdk.ToTime(made.CreateTime)))
	v, err := p.awaitAvailable(ctx, types.Volume{VolumeId: made.VolumeId, State: types.VolumeStateCreating, Tags: tagList(tags)}, t.name, told && age > managed.Lag)
	if errors.Is(err, errSpent) || errors.Is(err, errNotMade) {
		certain := tokenSeenUsed
		if told {
			certain = max(certain, tokenKept-age)
		}
		p.memory.spend(t, certain)
	}
	return v, err
}

// findSoon is Lookup for a volume that answers may not show yet. It is errSpent if none appears.
func (p *Provider) findSoon(ctx context.Context, name string) (managed.Disk[types.Volume], error) {
	retry := pace.Backoff{Most: time.Second}
	for begin := time.Now(); ; {
		asked := time.Now()
		d, err := p.Lookup(ctx, name)
		switch {
		case !errors.Is(err, providers.ErrNotFound):
			return d, err
		case asked.Sub(begin) >= managed.Lag:
			return d, errSpent
		}
		if err := retry.Wait(ctx); err != nil {
			return d, err
		}
	}
}

// errNotMade says that EC2 has accepted a volume, and then could not make it.
var errNotMade = fmt.Errorf("%w: EC2 began to make the volume and gave up", providers.ErrInvalid)

// awaitAvailable waits until a volume that is being made can be attached. It is errSpent if it turns out to be gone: the
// answer was of an old one, which the token made and which has been deleted, forgotten or renamed since.
func (p *Provider) awaitAvailable(ctx context.Context, v types.Volume, name string, old bool) (types.Volume, error) {
	retry := pace.Backoff{Most: 2 * time.Second}
	id, created := *v.VolumeId, p.show(v)
	for begin := time.Now(); v.State == types.VolumeStateCreating; {
		if p.Hides(created) {
			return v, errSpent
		}
		asked := time.Now()
		now, found, err := p.byID.Get(ctx, id)
		if err != nil {
			return v, err
		}
		mustShow := asked.Sub(begin) >= managed.Lag
		switch {
		case found && !exists(now), !found && (old || mustShow):
			return v, errSpent
		case !found:
		case !p.has(now, name):
			if mustShow { // before, it may have been given its name back
				return v, errSpent
			}
		case now.State == types.VolumeStateError && !old:
			p.Hide(created, hideFailed)
			return v, fmt.Errorf("%w (%s, %q)%s", errNotMade, id, now.State, keyAdvice)
		case now.State == types.VolumeStateError:
			return v, unusable(now)
		case now.State != types.VolumeStateCreating:
			return now, nil
		}
		if err := retry.Wait(ctx); err != nil {
			return v, fmt.Errorf("volume %s is still being created: %w", id, err)
		}
	}
	return v, nil
}

// hideFailed is how long EC2 may show a volume that it could not make.
const hideFailed = time.Hour

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
