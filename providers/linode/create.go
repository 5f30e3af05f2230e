package linode

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	sdk "github.com/linode/linodego"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// sizes are the sizes that Linode sells ("Block Storage", limits).
var sizes = providers.Sizes{Cloud: "Linode", Least: 10, Most: 16384}

// maxTurns bounds the search for a label that is free.
const maxTurns = 100

// order translates a specification into a request. One request makes the volume with its label and all its tags, so there is no
// volume without a name.
func (p *Provider) order(ctx context.Context, spec providers.Spec, gib int64, turn int) (sdk.VolumeCreateOptions, error) {
	own, err := operatorTags(spec.Tags)
	order := sdk.VolumeCreateOptions{
		Label: p.label(spec.Name, turn), Region: spec.Zone, Size: int(gib), // 0 is Linode's default
		Tags: slices.Concat(own, p.marks(spec.Name), recordTags(spec.Record)),
	}
	if spec.Encrypted { // otherwise Linode's default holds
		order.Encryption = "enabled"
	}
	if err == nil && order.Region == "" {
		var node providers.Node
		node, err = p.Node(ctx)
		order.Region = node.Zone
	}
	return order, err
}

// create makes a volume under the label of the turn, and returns the one volume of the name.
func (p *Provider) create(ctx context.Context, spec providers.Spec, gib int64, turn int) (sdk.Volume, error) {
	order, err := p.order(ctx, spec, gib, turn)
	if err != nil {
		return sdk.Volume{}, err
	}
	made, err := p.createOnce(ctx, order, spec.Record)
	if err != nil {
		return sdk.Volume{}, err
	}
	return p.winner(ctx, made.ID, spec.Name)
}

func (p *Provider) createOnce(ctx context.Context, order sdk.VolumeCreateOptions, rec providers.Record) (*sdk.Volume, error) {
	made, err := call(ctx, p, "the request to create volume "+order.Label, func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.CreateVolume(ctx, order)
	}, func(v *sdk.Volume) bool { return v.ID > 0 && v.Label == order.Label })
	if err != nil {
		return nil, err
	}
	if is := p.identity(made.Tags); is.cluster != p.cluster {
		return nil, p.undo(ctx, made)
	}
	if stored, err := recordOf(made.Tags); err != nil || !maps.Equal(stored, rec) {
		return nil, fmt.Errorf("volume %d was made without all of its tags: see whether the token's user may have tags, then remove the volume and create it again", made.ID)
	}
	return made, nil
}

func (p *Provider) taken(_ context.Context, name string, _ error) error {
	return fmt.Errorf("%w: the labels of volumes of this name, %s and %d others, are all taken, by disks that were forgotten: delete or rename what is not needed",
		providers.ErrInvalid, p.label(name, 0), maxTurns-1)
}

// undo deletes a volume that this process has just made, if Linode has made it without the tags of this cluster. It is blank, and no
// node can find it by its name or attach it by its id. Without this, each further Create would leave another volume under the next
// label. undo leaves a volume that somebody has tagged or attached since.
func (p *Provider) undo(ctx context.Context, made *sdk.Volume) error {
	err := fmt.Errorf("volume %d was made without all of its tags: see whether the token's user may have tags", made.ID)
	now, lookErr := p.Get(ctx, strconv.Itoa(made.ID))
	switch {
	case errors.Is(lookErr, providers.ErrNotFound):
		return err
	case lookErr == nil && now.Serial == made.Label && now.Native.LinodeID == nil && !now.Marked:
		if lookErr = p.destroy(ctx, now); lookErr == nil {
			return fmt.Errorf("%w; it has been deleted again", err)
		}
	}
	return errors.Join(fmt.Errorf("%w, and delete this one, which is empty (linode-cli volumes delete %d)", err, made.ID), lookErr)
}

// winner returns the one volume of the name after this process has made one. Two nodes may have made two, if a forgotten disk was
// deleted at that moment and its label was free for the second node only. Each node looks after it has made its volume, so at least
// the later one sees both. The older volume has the name; the maker of the younger one forgets it. It does not delete it, since
// another node may use it by now.
func (p *Provider) winner(ctx context.Context, made int, name string) (sdk.Volume, error) {
	isMade := func(v sdk.Volume) bool { return v.ID == made }
	retry, begin := pause.Backoff{Most: time.Second}, time.Now()
	for {
		asked := time.Now()
		all, err := p.rivals(ctx, name)
		shown := slices.ContainsFunc(all, isMade)
		switch {
		case err != nil:
			return sdk.Volume{}, err
		case !shown && asked.Sub(begin) < providers.MaxStale: // the answer may be stale
			if err := retry.Wait(ctx); err != nil {
				return sdk.Volume{}, err
			}
			continue
		case len(all) == 0:
			return sdk.Volume{}, fmt.Errorf("%w: volume %d was made and is gone at the same moment", providers.ErrBusy, made)
		case all[0].ID != made && shown:
			if err := p.Forget(ctx, strconv.Itoa(made)); err != nil {
				return sdk.Volume{}, fmt.Errorf("%w: %q is the name of volumes %d and %d, and %d cannot be released: %w", providers.ErrAmbiguous, name, all[0].ID, made, made, err)
			}
			if p.cfg.Log != nil {
				p.cfg.Log.WithField("volume", name).Warnf("Two nodes have made a volume of this name at the same moment. Linode's volume %d has it; volume %d is not needed: delete it (linode-cli volumes delete %d)", all[0].ID, made, made)
			}
		}
		return all[0], nil
	}
}
