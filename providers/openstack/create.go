package openstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/pace"
)

// times are those that the making of volumes rests on. Patience is life, and as long as a write may take, and lag, together.
type times struct {
	lag      time.Duration // a read is not older than that
	life     time.Duration // a candidate is settled so long after it was asked for, or not at all
	patience time.Duration // one that was seen so long ago, and is not settled, will not be
	ancient  time.Duration // and so will one of that age, by the cloud's clock
}

var usual = times{lag: 3 * time.Second, life: time.Minute, patience: 2 * time.Minute, ancient: time.Hour}

// Create returns the volume once Cinder calls it available. How two nodes get one volume, the package's comment says.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	if err := p.Check(spec); err != nil {
		return nil, err
	}
	if spec.IOPS != 0 || spec.Throughput != 0 || spec.Encrypted || spec.KMSKey != "" || spec.Size < 0 {
		return nil, fmt.Errorf("%w: Cinder has sizes of 1 GiB and more, and IOPS, throughput and encryption are matters of its volume types: choose a type", providers.ErrInvalid)
	}
	unlock, _, err := p.names.Lock(ctx, spec.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	retry := pace.Backoff{Most: max(p.times.lag, time.Millisecond)}
	for begun := time.Now(); ; {
		v, err := p.create(ctx, spec)
		if err == nil {
			return p.Volume(ctx, p.show(volume{Volume: v}), true)
		}
		// Two that are adopted under one name at once are both seen until one of them gives way.
		giving := errors.Is(err, providers.ErrAmbiguous) && time.Since(begun) < 4*p.times.lag
		if !errors.Is(err, errLost) && !giving {
			return nil, err
		}
		if over := retry.Wait(ctx); over != nil {
			return nil, fmt.Errorf("%w: volume %q is being made by another node (%w): %w", providers.ErrBusy, spec.Name, err, over)
		}
	}
}

// errLost says that it is another candidate's turn, or that there is none any more: whoever creates looks again.
var errLost = errors.New("another candidate has the name, or is about to")

// create is one attempt at a volume of the name.
func (p *Provider) create(ctx context.Context, spec providers.Spec) (volumes.Volume, error) {
	all, err := p.survey(ctx, spec.Name)
	switch {
	case err != nil:
		return volumes.Volume{}, err
	case all.settled.ID != "":
		_ = p.withdraw(ctx, all.mine...) // of a Create that ended before it was done; if it fails, the next one tries again
		return p.awaitAvailable(ctx, all.settled)
	}
	made := ""
	switch {
	case len(all.mine) > 0: // of such a Create, too
	case len(all.others) > 0:
		return volumes.Volume{}, fmt.Errorf("%w: %s", errLost, all.others[0].ID)
	default:
		if made, err = p.make(ctx, spec); err != nil {
			return volumes.Volume{}, err
		}
	}
	return p.settle(ctx, spec, made)
}

// contenders are the volumes that have a name, those of the makers that are certainly dead left out.
type contenders struct {
	settled volumes.Volume   // the volume of the name; without an ID there is none
	mine    []volumes.Volume // candidates of this process, by id
	others  []volumes.Volume // other candidates
	orphans []volumes.Volume // those left out
}

// survey asks for all that have a name.
func (p *Provider) survey(ctx context.Context, name string) (b contenders, err error) {
	found, err := p.ByName(ctx, name)
	if err != nil {
		return b, err
	}
	settled, err := p.One(name, found)
	if errors.Is(err, providers.ErrNotFound) {
		err = nil
	}
	b.settled = settled.Native.Volume
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range found {
		v := d.Native.Volume
		if !p.isCandidate(v.Metadata) {
			continue
		}
		first, known := p.seen[v.ID]
		if !known {
			first = time.Now()
			p.seen[v.ID] = first
		}
		age := d.Native.told.Sub(v.CreatedAt)
		switch {
		case v.Metadata[keyMaker] == p.maker:
			b.mine = append(b.mine, v)
		case time.Since(first) >= p.times.patience, !d.Native.told.IsZero() && !v.CreatedAt.IsZero() && age >= p.times.ancient:
			b.orphans = append(b.orphans, v)
		case v.Metadata[keyState] == stateWithdrawn: // nobody settles it
		default:
			b.others = append(b.others, v)
		}
	}
	slices.SortFunc(b.mine, func(a, b volumes.Volume) int { return strings.Compare(a.ID, b.ID) })
	return b, err
}

// make asks for a candidate, once, and returns its id. If that is not answered, there may be one; the next survey shows it.
func (p *Provider) make(ctx context.Context, spec providers.Spec) (id string, err error) {
	in, err := p.order(ctx, spec)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	p.sent[spec.Name] = time.Now()
	p.mu.Unlock()
	made, err := call(ctx, p, fmt.Sprintf("volume %q", spec.Name), func(ctx context.Context, s *session) (*volumes.Volume, error) {
		return volumes.Create(ctx, s.volume, in, nil).Extract()
	})
	if errors.Is(err, providers.ErrUnavailable) && ctx.Err() == nil {
		// It may have been made all the same.
		if over := pace.Pause(ctx, p.times.lag); over != nil {
			return "", err
		}
		if all, again := p.survey(ctx, spec.Name); again == nil && len(all.mine) > 0 {
			return "", nil
		}
	}
	if err != nil {
		return "", invalid(err, ": check the options type, zone and snapshot")
	}
	return made.ID, nil
}

// order puts the specification into Cinder's words, and refuses what Cinder does not sell.
func (p *Provider) order(ctx context.Context, spec providers.Spec) (volumes.CreateOpts, error) {
	gibs, err := sizes.Of(spec.Size)
	if err != nil {
		return volumes.CreateOpts{}, err
	}
	if spec.Snapshot != "" {
		from, size, err := p.Source(ctx, spec, gibs)
		if err != nil {
			return volumes.CreateOpts{}, err
		}
		gibs, spec.Record = size, from.Record
	}
	if gibs == 0 {
		return volumes.CreateOpts{}, sizes.Refuse(0)
	}
	marks := p.marks(spec)
	marks[keyState], marks[keyMaker] = stateClaimed, p.maker
	const longest = 255
	return volumes.CreateOpts{
		Name: labels.Name(p.cluster, spec.Name, longest), Size: int(gibs), VolumeType: spec.Type, AvailabilityZone: spec.Zone,
		SnapshotID: spec.Snapshot, Metadata: marks,
	}, nil
}

// settle brings this process's candidate through step 2 of the package's comment; made is its id, "" if that is to be looked up. It
// is errLost if it is not to be.
func (p *Provider) settle(ctx context.Context, spec providers.Spec, made string) (volumes.Volume, error) {
	p.mu.Lock()
	end := p.sent[spec.Name].Add(p.times.life)
	p.mu.Unlock()
	if made != "" {
		if err := pace.Pause(ctx, p.times.lag); err != nil {
			return volumes.Volume{}, err
		}
	}
	for retry := (pace.Backoff{Most: max(p.times.lag, time.Millisecond)}); ; {
		all, err := p.survey(ctx, spec.Name)
		if err != nil { // also that of a volume which has the name, and is broken
			return volumes.Volume{}, errors.Join(err, p.withdraw(ctx, all.mine...))
		}
		p.report(spec.Name, all.orphans)
		if len(all.mine) == 0 {
			if all.settled.ID != "" && all.settled.Metadata[keyMaker] == p.maker {
				return p.awaitAvailable(ctx, all.settled) // the write was not answered, and took effect
			}
			if err := p.unlisted(ctx, made, end); !errors.Is(err, errUnlisted) {
				return volumes.Volume{}, err
			}
			if err := retry.Wait(ctx); err != nil {
				return volumes.Volume{}, err
			}
			continue
		}
		mine := all.mine[0]
		if err := p.withdraw(ctx, all.mine[1:]...); errors.Is(err, errInDoubt) {
			if err := retry.Wait(ctx); err != nil {
				return volumes.Volume{}, err
			}
			continue
		} else if err != nil { // of a request that was not answered in time
			return volumes.Volume{}, err
		}
		if mine.ID != made { // it may just have appeared
			made = mine.ID
			if err := pace.Pause(ctx, p.times.lag); err != nil {
				return volumes.Volume{}, err
			}
			continue
		}
		lower := slices.ContainsFunc(all.others, func(v volumes.Volume) bool { return v.ID < mine.ID })
		unready := isBeingMade(mine) && time.Until(end) > p.times.life/2
		switch {
		case p.isWithdrawn(mine.ID), all.settled.ID != "", lower, !time.Now().Before(end):
			err := p.withdraw(ctx, mine)
			if errors.Is(err, errInDoubt) {
				if err := retry.Wait(ctx); err != nil {
					return volumes.Volume{}, err
				}
				continue
			}
			return volumes.Volume{}, cmp.Or(err, errLost)
		case broken(mine) != nil:
			return volumes.Volume{}, p.giveUp(ctx, mine)
		case mine.Multiattach:
			return volumes.Volume{}, p.unfit(ctx, mine)
		case len(all.others) > 0, unready:
			if err := retry.Wait(ctx); err != nil {
				return volumes.Volume{}, err
			}
		default:
			if err := p.advance(ctx, mine.ID, end); errors.Is(err, errLate) {
				continue
			} else if err != nil {
				return volumes.Volume{}, err
			}
			mine.Metadata[keyState] = stateSettled
			return p.awaitAvailable(ctx, mine)
		}
	}
}

// errUnlisted says that Cinder has a candidate, and that its list does not show it yet.
var errUnlisted = errors.New("the list does not show the candidate yet")

// unlisted finds out why a list does not show the candidate that this process has made; made is its id, "" if it is not known.
// Errors: errLost if it is not there, errUnlisted. After the candidate's end it is withdrawn: otherwise each Create would make
// one volume after another.
func (p *Provider) unlisted(ctx context.Context, made string, end time.Time) error {
	if made == "" {
		return errLost
	}
	v, err := p.get(ctx, made)
	switch {
	case errors.Is(err, providers.ErrNotFound), err == nil && !p.isCandidate(v.Metadata): // deleted with the volume of the name, or by hand
		return errLost
	case err != nil:
		return err
	case time.Now().Before(end):
		return errUnlisted
	}
	err = fmt.Errorf("Cinder has made volume %s, and its lists do not show it: ask the cloud's operator", made) //nolint:staticcheck // a name
	if left := p.withdraw(ctx, v.Volume); left != nil {
		return fmt.Errorf("%w; and it is still there: %w", err, left)
	}
	return err
}

// advance makes a candidate of this process the volume of its name, before its end or not at all; with errLate there was no time
// for it.
func (p *Provider) advance(ctx context.Context, id string, end time.Time) error {
	timely, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	err := p.write(timely, id, map[string]string{keyState: stateSettled})
	var answer *refusal
	if err == nil || !errors.As(err, &answer) || answer.status >= http.StatusInternalServerError {
		p.doubt(id) // also after a success: a read may show the candidate as it was
	}
	switch {
	case refused(err, http.StatusNotFound):
		return errLost
	case err != nil && timely.Err() != nil && ctx.Err() == nil:
		return errLate
	}
	return err
}

// doubt notes that a candidate may be settled, whatever reads show.
func (p *Provider) doubt(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.doubts, func(_ string, since time.Time) bool { return time.Since(since) >= p.times.patience })
	p.doubts[id] = time.Now()
}

var (
	errLate    = errors.New("the candidate's time is over")
	errInDoubt = fmt.Errorf("%w: the request that makes it the volume of its name may have been carried out, or may still be", providers.ErrBusy)
)

// report tells the operator of orphans, once for each.
func (p *Provider) report(name string, orphans []volumes.Volume) {
	for _, v := range orphans {
		p.mu.Lock()
		told := p.told[v.ID]
		p.told[v.ID] = true
		p.mu.Unlock()
		if !told && p.cfg.Log != nil {
			p.cfg.Log.WithField("volume", name).Warnf("Cinder's volume %s is empty and nobody's: the process that made it has ended before it was done. It will be removed with volume %q, or by openstack volume delete %s", v.ID, name, v.ID)
		}
	}
}

func (p *Provider) isWithdrawn(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.withdrawn[id]
}

// withdraw deletes candidates of this process. They are never settled from then on. It is errInDoubt for one that may be settled
// by a request on its way, or by one that a read does not show yet.
func (p *Provider) withdraw(ctx context.Context, candidates ...volumes.Volume) error {
	for _, v := range candidates {
		p.mu.Lock()
		asked, doubtful := p.doubts[v.ID]
		doubtful = doubtful && time.Since(asked) < p.times.patience-p.times.life
		if !doubtful {
			p.withdrawn[v.ID] = true
		}
		p.mu.Unlock()
		if doubtful {
			return fmt.Errorf("volume %s: %w", v.ID, errInDoubt)
		}
		if isBeingMade(v) && v.Metadata[keyState] != stateWithdrawn {
			_ = p.write(ctx, v.ID, map[string]string{keyState: stateWithdrawn}) // otherwise others wait until it is deleted
		}
		if err := p.removeCandidate(ctx, v.ID); err != nil {
			return err
		}
	}
	return nil
}

// removeCandidate deletes a candidate, once it is made.
func (p *Provider) removeCandidate(ctx context.Context, id string) error {
	for retry := (pace.Backoff{Most: 2 * time.Second}); ; {
		err := p.destroy(ctx, id)
		if !refused(err, http.StatusBadRequest) {
			return err
		}
		v, unread := p.get(ctx, id)
		if errors.Is(unread, providers.ErrNotFound) { // the read may be of a time before it was made: the deletion tells
			v.Status = "creating"
		} else if unread != nil {
			return unread
		}
		if !slices.Contains([]string{"creating", "downloading", "available", "error"}, v.Status) {
			return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, id, v.Status, err)
		}
		if err := retry.Wait(ctx); err != nil {
			return fmt.Errorf("volume %s is not removed yet: %w", id, err)
		}
	}
}

// removeOrphans deletes what dead makers have left of a name.
func (p *Provider) removeOrphans(ctx context.Context, name string) error {
	all, err := p.survey(ctx, name)
	if err != nil && !errors.Is(err, providers.ErrAmbiguous) && all.settled.ID == "" {
		return err
	}
	for _, v := range all.orphans {
		if err := p.destroy(ctx, v.ID); err != nil && !refused(err, http.StatusBadRequest) {
			return err
		}
	}
	return nil
}

// isBeingMade tells whether a volume cannot be attached yet.
func isBeingMade(v volumes.Volume) bool { return v.Status == "creating" || v.Status == "downloading" }

// awaitAvailable waits until the volume of a name can be attached. If it cannot be made, that is told to the operator: it is not
// deleted, since other nodes know it.
func (p *Provider) awaitAvailable(ctx context.Context, v volumes.Volume) (volumes.Volume, error) {
	for retry := (pace.Backoff{Most: 2 * time.Second}); isBeingMade(v); {
		if err := retry.Wait(ctx); err != nil {
			return v, fmt.Errorf("volume %s is still being created: %w", v.ID, err)
		}
		now, err := p.GetOurs(ctx, v.ID)
		if errors.Is(err, providers.ErrNotFound) {
			return v, errLost
		} else if err != nil {
			return v, err
		}
		v = now.Native.Volume
	}
	return v, broken(v)
}

// unfit removes a candidate that could never be attached. Its type is not asked before, since Cinder tells what a type has to
// administrators only.
func (p *Provider) unfit(ctx context.Context, v volumes.Volume) error {
	err := severalServers("what Cinder makes of this")
	if left := p.withdraw(ctx, v); left != nil {
		return fmt.Errorf("%w; and volume %s is still there: %w", err, v.ID, left)
	}
	return err
}

// giveUp removes a candidate that Cinder could not make.
func (p *Provider) giveUp(ctx context.Context, v volumes.Volume) error {
	err := fmt.Errorf("%w: Cinder began to make volume %s and gave up (%q): the backend of its type may be full or out of order; ask the cloud's operator, or choose another type", providers.ErrBusy, v.ID, v.Status)
	if left := p.withdraw(ctx, v); left != nil {
		return fmt.Errorf("%w; and it is still there: %w", err, left)
	}
	return err
}
