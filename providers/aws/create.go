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

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
)

// token identifies a ClientToken. All nodes derive the same sequence of tokens from a volume's name.
//
// EC2 answers a token that it knows with the volume that the token created: so nodes that create a name at the same time get one
// volume. EC2 does so even if that volume has been deleted, and a token whose creation failed stays unusable; both for about a
// day. Then all nodes go on to the next token of the name.
type token struct {
	name string
	turn int // from 0
}

// maxTurns limits the search for a token that creates a volume.
const maxTurns = 1000

// How long a used token is skipped without asking EC2. This must be shorter than EC2 remembers the token, about a day: otherwise
// a node that does not know that the token was used would create a volume with it, and this node another one with the next token.
const (
	tokenSkipped  = 6 * time.Hour    // since the volume was created
	tokenSeenUsed = 10 * time.Minute // if it is not known when it was created
)

// errTokenUsed is returned for a token that does not create a volume any more.
var errTokenUsed = errors.New("this ClientToken has been used")

// clientToken has 64 characters, the most that EC2 accepts.
func (p *Provider) clientToken(t token) string {
	return labels.Digest(p.cfg.Cluster, t.name, strconv.Itoa(t.turn))
}

func (p *Provider) isUsed(t token) bool {
	until, known := p.usedTokens.Get(tokenSkipped, t)
	return known && time.Now().Before(until)
}

// setUsed makes Create skip the token for that time.
func (p *Provider) setUsed(t token, skip time.Duration) {
	if skip > 0 {
		p.usedTokens.Put(t, time.Now(), time.Now().Add(skip))
	}
}

// create returns the volume when it is available.
func (p *Provider) create(ctx context.Context, spec providers.Spec, _ int64, _ int) (types.Volume, error) {
	in, tags, err := p.createInput(ctx, spec)
	if err != nil {
		return types.Volume{}, err
	}
	for turn := range maxTurns {
		if t := (token{spec.Name, turn}); !p.isUsed(t) {
			v, err := p.createWith(ctx, in, t, tags)
			if !errors.Is(err, errTokenUsed) {
				return v, err
			}
		}
	}
	return types.Volume{}, fmt.Errorf("%w: more than %d volumes of this name were created and deleted within a day: choose another name", providers.ErrBusy, maxTurns)
}

// await waits until a volume that another node creates is available.
func (p *Provider) await(ctx context.Context, d managed.Disk[types.Volume]) (types.Volume, error) {
	v, err := p.awaitAvailable(ctx, d.Native, d.Name, false)
	if errors.Is(err, errTokenUsed) {
		err = fmt.Errorf("%w: volume %q has been deleted by another node: try again", providers.ErrBusy, d.Name)
	}
	return v, err
}

// createInput returns the request for a volume and its tags. Errors: ErrInvalid for what EC2 does not offer.
func (p *Provider) createInput(ctx context.Context, spec providers.Spec) (*ec2.CreateVolumeInput, map[string]string, error) {
	s, err := p.session.Get(ctx)
	if err != nil {
		return nil, nil, err
	}
	// EC2's own default type, gp2, is more expensive and slower than gp3.
	kind := types.VolumeType(cmp.Or(spec.Type, string(types.VolumeTypeGp3)))
	in := &ec2.CreateVolumeInput{
		AvailabilityZone: sdk.String(cmp.Or(spec.Zone, s.zone)), VolumeType: kind,
		Iops: orNil(spec.IOPS), Throughput: orNil(spec.Throughput),
	}
	if spec.Encrypted || spec.KMSKey != "" { // otherwise the account's default applies
		in.Encrypted = sdk.Bool(true)
	}
	if spec.KMSKey != "" {
		in.KmsKeyId = &spec.KMSKey
	}
	gibs := providers.InGiB(spec.Size)
	if spec.Snapshot != "" {
		in.SnapshotId = &spec.Snapshot
		from, size, err := p.Source(ctx, spec, gibs)
		if err != nil {
			return nil, nil, err
		}
		gibs, spec.Record = size, from.Record
	}
	if err := checkKind(kind, gibs, spec.IOPS, spec.Throughput); err != nil {
		return nil, nil, err
	}
	in.Size = sdk.Int32(int32(gibs))
	tags := p.marks(spec)
	if len(tags)+1 > maxTags {
		return nil, nil, fmt.Errorf("%w: the volume would have %d tags, and EC2 allows %d: ask for fewer", providers.ErrInvalid, len(tags)+1, maxTags)
	}
	return in, tags, nil
}

// createWith creates the volume with one token, or returns the volume that another node creates with it.
func (p *Provider) createWith(ctx context.Context, in *ec2.CreateVolumeInput, t token, tags map[string]string) (types.Volume, error) {
	tags[tagTurn] = strconv.Itoa(t.turn)
	in.ClientToken = sdk.String(p.clientToken(t))
	in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeVolume, Tags: tagList(tags)}}
	created, err := call(ctx, p, (*ec2.Client).CreateVolume, in)
	if errors.Is(err, errTokenMismatch) {
		// Another node creates the volume right now with other options; or the token's volume is gone, or was never created.
		d, err := p.findSoon(ctx, t.name)
		if errors.Is(err, errTokenUsed) {
			p.setUsed(t, tokenSeenUsed)
		}
		if err != nil {
			return types.Volume{}, err
		}
		return p.awaitAvailable(ctx, d.Native, t.name, false)
	}
	if err != nil {
		return types.Volume{}, err
	}
	// How old the volume was when EC2 answered, by EC2's clock.
	answered, known := awsmiddleware.GetServerTime(created.ResultMetadata)
	age := max(0, answered.Sub(sdk.ToTime(created.CreateTime)))
	v, err := p.awaitAvailable(ctx, types.Volume{VolumeId: created.VolumeId, State: types.VolumeStateCreating, Tags: tagList(tags)}, t.name, known && age > providers.MaxStale)
	if errors.Is(err, errTokenUsed) || errors.Is(err, errNotCreated) {
		skip := tokenSeenUsed
		if known {
			skip = max(skip, tokenSkipped-age)
		}
		p.setUsed(t, skip)
	}
	return v, err
}

// findSoon is Lookup for a volume that reads may not show yet. Errors: errTokenUsed if none shows it in time.
func (p *Provider) findSoon(ctx context.Context, name string) (managed.Disk[types.Volume], error) {
	retry := pause.Backoff{Most: time.Second}
	for begin := time.Now(); ; {
		asked := time.Now()
		d, err := p.Lookup(ctx, name)
		switch {
		case !errors.Is(err, providers.ErrNotFound):
			return d, err
		case asked.Sub(begin) >= providers.MaxStale:
			return d, errTokenUsed
		}
		if err := retry.Wait(ctx); err != nil {
			return d, err
		}
	}
}

// errNotCreated is returned for a volume that EC2 accepted and then could not create.
var errNotCreated = fmt.Errorf("%w: EC2 accepted the volume and could not create it", providers.ErrInvalid)

// hideFailed is how long EC2 may show a volume that it could not create.
const hideFailed = time.Hour

// awaitAvailable waits until a volume that is being created can be attached. For an old volume the answer to its token may be
// outdated. Errors: errTokenUsed if the volume has been deleted, forgotten or renamed.
func (p *Provider) awaitAvailable(ctx context.Context, v types.Volume, name string, old bool) (types.Volume, error) {
	retry := pause.Backoff{Most: 2 * time.Second}
	id, created := *v.VolumeId, p.show(v)
	for begin := time.Now(); v.State == types.VolumeStateCreating; {
		if p.Hides(created) {
			return v, errTokenUsed
		}
		asked := time.Now()
		now, found, err := p.byID.Get(ctx, id)
		if err != nil {
			return v, err
		}
		mustShow := asked.Sub(begin) >= providers.MaxStale
		switch {
		case found && !exists(now), !found && (old || mustShow):
			return v, errTokenUsed
		case !found:
		case !p.isNamed(now, name):
			if mustShow { // an older read may not show that the volume has its name again
				return v, errTokenUsed
			}
		case now.State == types.VolumeStateError && !old:
			p.Hide(created, hideFailed)
			return v, fmt.Errorf("%w (%s, %q)%s", errNotCreated, id, now.State, keyAdvice)
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

func orNil(n int) *int32 {
	if n == 0 {
		return nil
	}
	return sdk.Int32(int32(min(n, 1<<31-1)))
}
