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

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

// sizes are those that Linode sells ("Block Storage", limits).
var sizes = providers.Sizes{Cloud: "Linode", Least: 10, Most: 16384}

// maxTurns bounds the search for a label that is free.
const maxTurns = 100

// Create returns the volume once Linode calls it active. A volume comes into being with its label and all its tags in one
// request, so there is none without a name.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	order, err := p.order(spec)
	if err != nil {
		return nil, err
	}
	v, asked, err := p.find(ctx, spec.Name)
	if errors.Is(err, providers.ErrNotFound) {
		v, asked, err = p.make(ctx, order, spec)
	}
	if err != nil {
		return nil, err
	}
	ready, asked, err := p.ready(ctx, &v, asked)
	if err != nil {
		return nil, err
	}
	return p.describe(ready, asked)
}

// order puts the specification into Linode's words, and refuses what Linode does not sell.
func (p *Provider) order(spec providers.Spec) (sdk.VolumeCreateOptions, error) {
	own, err := operatorTags(spec.Tags)
	gibs, wrong := sizes.Of(spec.Size) // 0 is Linode's default
	err = errors.Join(err, providers.CheckOptions("Linode", spec, p.Supports()), wrong)
	if err := errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record), err); err != nil {
		return sdk.VolumeCreateOptions{}, err
	}
	order := sdk.VolumeCreateOptions{Region: spec.Zone, Size: int(gibs), Tags: slices.Concat(own, p.marks(spec.Name), recordTags(spec.Record))}
	if spec.Encrypted { // otherwise Linode's default holds
		order.Encryption = "enabled"
	}
	return order, nil
}

// make makes a volume of a name that no volume bears, or finds the one that another node makes at this moment.
func (p *Provider) make(ctx context.Context, order sdk.VolumeCreateOptions, spec providers.Spec) (sdk.Volume, time.Time, error) {
	if order.Region == "" {
		node, err := p.Node(ctx)
		if err != nil {
			return sdk.Volume{}, time.Time{}, err
		}
		order.Region = node.Zone
	}
	for turn := range maxTurns {
		order.Label = p.label(spec.Name, turn)
		made, err := p.makeOnce(ctx, order, spec.Record)
		if err == nil {
			return p.settle(ctx, made.ID, spec.Name)
		}
		if !errors.Is(err, errTaken) {
			return sdk.Volume{}, time.Time{}, err
		}
		v, asked, err := p.find(ctx, spec.Name)
		if !errors.Is(err, providers.ErrNotFound) {
			return v, asked, err
		}
	}
	return sdk.Volume{}, time.Time{}, fmt.Errorf("%w: the labels of volumes of this name, %s and %d others, are all taken, by disks that were forgotten: delete or rename what is not needed",
		providers.ErrInvalid, p.label(spec.Name, 0), maxTurns-1)
}

// makeOnce makes the volume under one label. Errors: errTaken.
func (p *Provider) makeOnce(ctx context.Context, order sdk.VolumeCreateOptions, rec providers.Record) (*sdk.Volume, error) {
	made, err := call(ctx, p, "the request to create volume "+order.Label, func(ctx context.Context) (*sdk.Volume, error) {
		return p.api.CreateVolume(ctx, order)
	}, func(v *sdk.Volume) bool { return v.ID > 0 && v.Label == order.Label })
	if err != nil {
		return nil, err
	}
	if !p.isOurs(made.Tags) {
		return nil, p.undo(ctx, made)
	}
	if stored, err := recordOf(made.Tags); err != nil || !maps.Equal(stored, rec) {
		return nil, fmt.Errorf("volume %d was made without all of its tags: see whether the token's user may have tags, then remove the volume and create it again", made.ID)
	}
	return made, nil
}

// undo deletes a volume that this process has made a moment ago and that Linode has made without the tags of a volume of this
// cluster. So no node can find it by its name or attach it by its id, and it is blank. Otherwise each further Create would leave
// another one under the next label. One that somebody has given tags or attached since is left as it is.
func (p *Provider) undo(ctx context.Context, made *sdk.Volume) error {
	err := fmt.Errorf("volume %d was made without all of its tags: see whether the token's user may have tags", made.ID)
	now, _, lookErr := p.get(ctx, made.ID)
	switch {
	case errors.Is(lookErr, providers.ErrNotFound):
		return err
	case lookErr == nil && now.Label == made.Label && now.LinodeID == nil && !p.identity(now.Tags).owned:
		if lookErr = p.destroy(ctx, made.ID); lookErr == nil {
			return fmt.Errorf("%w; it has been deleted again", err)
		}
	}
	return errors.Join(fmt.Errorf("%w, and delete this one, which is empty (linode-cli volumes delete %d)", err, made.ID), lookErr)
}

// settle returns the one volume of the name after this process has made one. If labels of different turns were free for two
// nodes at the same moment, because a forgotten disk was deleted in between, there are two. As both nodes look after they have
// made theirs, at least the later one sees both; the maker of the younger one takes the name off it, and leaves the disk to the
// operator: it is not deleted, since by now somebody may have been given it.
func (p *Provider) settle(ctx context.Context, made int, name string) (sdk.Volume, time.Time, error) {
	isMade := func(v sdk.Volume) bool { return v.ID == made }
	all, asked, err := p.bearing(ctx, name)
	retry := pace.Backoff{Most: time.Second}
	for begin := time.Now(); err == nil && !slices.ContainsFunc(all, isMade) && asked.Sub(begin) < lag; { // it is shown yet as it was before
		if err = retry.Wait(ctx); err == nil {
			all, asked, err = p.bearing(ctx, name)
		}
	}
	switch {
	case err != nil:
		return sdk.Volume{}, asked, err
	case len(all) == 0:
		return sdk.Volume{}, asked, fmt.Errorf("%w: volume %d was made and is gone at the same moment", providers.ErrBusy, made)
	case all[0].ID != made && slices.ContainsFunc(all, isMade):
		if err := p.yield(ctx, made); err != nil {
			_, ambiguous := p.bearers().One(name, all)
			return sdk.Volume{}, asked, errors.Join(ambiguous, err)
		}
		if p.cfg.Log != nil {
			p.cfg.Log.WithField("volume", name).Warnf("Two nodes have made a volume of this name at the same moment. Linode's volume %d has it; volume %d is not needed: delete it (linode-cli volumes delete %d)", all[0].ID, made, made)
		}
	}
	return all[0], asked, nil
}

// yield takes cluster and name off a volume that nobody holds.
func (p *Provider) yield(ctx context.Context, id int) error {
	_, _, err := p.retag(ctx, id, func(v *sdk.Volume, asked time.Time) ([]string, error) {
		if held := p.attachmentOf(v, asked); held.State != providers.Detached {
			return nil, &providers.HeldError{Volume: strconv.Itoa(id), Node: held.Node}
		}
		return without(v.Tags, markPrefix), nil
	})
	if err == nil {
		p.forget(id, time.Now())
	}
	return err
}

// ready waits until a volume is active.
func (p *Provider) ready(ctx context.Context, v *sdk.Volume, asked time.Time) (*sdk.Volume, time.Time, error) {
	retry, begin := pace.Backoff{Most: 2 * time.Second}, time.Now()
	for v.Status == sdk.VolumeCreating {
		if err := retry.Wait(ctx); err != nil {
			return nil, asked, fmt.Errorf("volume %d is still being created: %w", v.ID, err)
		}
		now, when, err := p.getOurs(ctx, v.ID)
		if errors.Is(err, providers.ErrNotFound) && time.Since(begin) < lag {
			continue
		} else if errors.Is(err, providers.ErrNotFound) {
			return nil, when, fmt.Errorf("%w: volume %d was made and is gone at the same moment", providers.ErrBusy, v.ID)
		} else if err != nil {
			return nil, when, err
		}
		v, asked = now, when
	}
	if v.Status == sdk.VolumeContactSupport {
		return nil, asked, fmt.Errorf("volume %d is %q in Linode's words: open a support ticket, or remove the volume", v.ID, v.Status)
	}
	return v, asked, nil
}
