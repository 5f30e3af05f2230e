package openstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
)

// times are the times that make one name one volume, see the package comment. patience must be longer than life, the time that a
// write takes, and lag together.
type times struct {
	lag      time.Duration // a read is not older than this
	life     time.Duration // a candidate is settled within this time after the request for it, or never
	patience time.Duration // a candidate that another process has seen for this long is an orphan
	ancient  time.Duration // and so is one of this age, by the cloud's clock
}

var usual = times{lag: 3 * time.Second, life: time.Minute, patience: 2 * time.Minute, ancient: time.Hour}

// moments stores times by key.
type moments struct{ m sync.Map }

func (m *moments) set(key string) { m.m.Store(key, time.Now()) }

// get returns the zero time for a key without one.
func (m *moments) get(key string) time.Time {
	at, _ := m.m.Load(key)
	t, _ := at.(time.Time)
	return t
}

// first sets the time of a key that has none, and returns its time.
func (m *moments) first(key string) time.Time {
	at, _ := m.m.LoadOrStore(key, time.Now())
	t, _ := at.(time.Time)
	return t
}

var (
	// errLost means that this process has no candidate: Create starts again.
	errLost = errors.New("another candidate has the name, or may get it")
	// errNotYet means that the candidate can neither be settled nor withdrawn yet.
	errNotYet = errors.New("the candidate is still waited for")
	// errInDoubt is returned for a candidate that may be settled, or about to be, although a read does not show it.
	errInDoubt = fmt.Errorf("%w: the request that makes it the volume of its name may have been carried out, or may still be", providers.ErrBusy)
)

// Create returns the volume when it is available. The package comment says how two nodes get one volume.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	_, wrong := sizes.Of(spec.Size)
	if err := errors.Join(p.Check(spec), wrong); err != nil {
		return nil, err
	}
	if spec.IOPS != 0 || spec.Throughput != 0 || spec.Encrypted || spec.KMSKey != "" {
		return nil, fmt.Errorf("%w: the volume type determines IOPS, throughput and encryption in OpenStack: leave them out, and choose a type", providers.ErrInvalid)
	}
	unlock, _, err := p.names.Lock(ctx, spec.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	retry := pause.Backoff{Most: max(p.times.lag, time.Millisecond)}
	for begin := time.Now(); ; {
		v, err := p.createOnce(ctx, spec)
		if err == nil {
			return p.Volume(ctx, p.show(volume{Volume: v}), true)
		}
		// Two volumes that are adopted under one name at the same time have it both, until one is released.
		adopting := errors.Is(err, providers.ErrAmbiguous) && time.Since(begin) < 4*p.times.lag
		if !errors.Is(err, errLost) && !adopting {
			return nil, err
		}
		if over := retry.Wait(ctx); over != nil {
			return nil, fmt.Errorf("%w: volume %q is being created by another node (%w): %w", providers.ErrBusy, spec.Name, err, over)
		}
	}
}

func (p *Provider) createOnce(ctx context.Context, spec providers.Spec) (volumes.Volume, error) {
	all, err := p.candidates(ctx, spec.Name)
	created := ""
	switch {
	case err != nil:
		return volumes.Volume{}, err
	case all.settled.ID != "":
		_ = p.withdraw(ctx, all.mine...) // of a Create that did not finish; if this fails, the next Create repeats it
		return p.awaitAvailable(ctx, all.settled)
	case len(all.mine) > 0: // of a Create that did not finish
	case len(all.others) > 0:
		return volumes.Volume{}, fmt.Errorf("%w: %s", errLost, all.others[0].ID)
	default:
		if created, err = p.createCandidate(ctx, spec); err != nil {
			return volumes.Volume{}, err
		}
	}
	return p.settle(ctx, spec.Name, created)
}

// candidates are the volumes of a name.
type candidates struct {
	settled volumes.Volume   // the volume of the name; its ID is empty if there is none
	mine    []volumes.Volume // candidates of this process, sorted by ID
	others  []volumes.Volume // other candidates
	orphans []volumes.Volume // candidates whose creator has certainly ended
}

func (p *Provider) candidates(ctx context.Context, name string) (c candidates, err error) {
	found, err := p.ByName(ctx, name)
	if err != nil {
		return c, err
	}
	settled, err := p.One(name, found)
	if errors.Is(err, providers.ErrNotFound) {
		err = nil
	}
	c.settled = settled.Native.Volume
	for _, d := range found {
		v := d.Native.Volume
		if !p.isCandidate(v.Metadata) {
			continue
		}
		seen, now := p.seen.first(v.ID), d.Native.now
		switch {
		case v.Metadata[keyMaker] == p.maker:
			c.mine = append(c.mine, v)
		case time.Since(seen) >= p.times.patience, !now.IsZero() && !v.CreatedAt.IsZero() && now.Sub(v.CreatedAt) >= p.times.ancient:
			c.orphans = append(c.orphans, v)
		case v.Metadata[keyState] == stateWithdrawn: // never settled
		default:
			c.others = append(c.others, v)
		}
	}
	slices.SortFunc(c.mine, func(a, b volumes.Volume) int { return strings.Compare(a.ID, b.ID) })
	return c, err
}

// createCandidate sends one request for a candidate, and returns its ID. The ID is empty if the request was not answered and a read
// shows the candidate.
func (p *Provider) createCandidate(ctx context.Context, spec providers.Spec) (id string, err error) {
	in, err := p.createOpts(ctx, spec)
	if err != nil {
		return "", err
	}
	p.requested.set(spec.Name)
	created, err := call(ctx, p, fmt.Sprintf("volume %q", spec.Name), func(ctx context.Context, s *session) (*volumes.Volume, error) {
		return volumes.Create(ctx, s.volume, in, nil).Extract()
	})
	if errors.Is(err, providers.ErrUnavailable) && ctx.Err() == nil {
		if over := pause.For(ctx, p.times.lag); over != nil {
			return "", err
		}
		if all, readErr := p.candidates(ctx, spec.Name); readErr == nil && len(all.mine) > 0 {
			return "", nil
		}
	}
	if err != nil {
		return "", invalid(err, ": check the options type, zone and snapshot")
	}
	return created.ID, nil
}

// createOpts translates the specification. Errors: ErrInvalid for a size that Cinder does not have.
func (p *Provider) createOpts(ctx context.Context, spec providers.Spec) (volumes.CreateOpts, error) {
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
		Name: labels.Name(p.cfg.Cluster, spec.Name, longest), Size: int(gibs), VolumeType: spec.Type, AvailabilityZone: spec.Zone,
		SnapshotID: spec.Snapshot, Metadata: marks,
	}, nil
}

// settle makes this process's candidate the volume of the name: step 2 of the package comment. created is the ID of the candidate,
// or empty if a read has to show it. Errors: errLost if there is another volume.
func (p *Provider) settle(ctx context.Context, name, created string) (volumes.Volume, error) {
	if created != "" {
		if err := pause.For(ctx, p.times.lag); err != nil {
			return volumes.Volume{}, err
		}
	}
	end := p.requested.get(name).Add(p.times.life)
	for retry := (pause.Backoff{Most: max(p.times.lag, time.Millisecond)}); ; {
		v, err := p.settleOnce(ctx, name, &created, end)
		if !errors.Is(err, errNotYet) {
			return v, err
		}
		if err := retry.Wait(ctx); err != nil {
			return v, err
		}
	}
}

// settleOnce is one attempt. Errors: also errNotYet.
func (p *Provider) settleOnce(ctx context.Context, name string, created *string, end time.Time) (none volumes.Volume, err error) {
	all, err := p.candidates(ctx, name)
	if err != nil { // also that of a volume of the name that has failed
		return none, errors.Join(err, p.withdraw(ctx, all.mine...))
	}
	p.report(name, all.orphans)
	if len(all.mine) == 0 {
		if all.settled.ID != "" && all.settled.Metadata[keyMaker] == p.maker {
			return p.awaitAvailable(ctx, all.settled) // an earlier request to settle it had no answer, and has taken effect
		}
		return none, p.whyNotListed(ctx, *created, end)
	}
	mine := all.mine[0]
	if err := unlessInDoubt(p.withdraw(ctx, all.mine[1:]...)); err != nil {
		return none, err
	}
	if mine.ID != *created { // it may have appeared just now, and others' reads may not show it
		*created = mine.ID
		return none, cmp.Or(pause.For(ctx, p.times.lag), errNotYet)
	}
	lower := slices.ContainsFunc(all.others, func(v volumes.Volume) bool { return v.ID < mine.ID })
	_, withdrawn := p.withdrawn.Load(mine.ID)
	switch {
	case withdrawn, all.settled.ID != "", lower, !time.Now().Before(end):
		return none, cmp.Or(unlessInDoubt(p.withdraw(ctx, mine)), errLost)
	case failed(mine) != nil:
		return none, p.abandon(ctx, mine, fmt.Errorf("%w: Cinder accepted volume %s and gave up (%q): the backend of its type may be full or out of order; ask the cloud's operator, or choose another type", providers.ErrBusy, mine.ID, mine.Status))
	case mine.Multiattach: // only administrators can read this of a volume type beforehand
		return none, p.abandon(ctx, mine, multiattachError("a volume of this type"))
	case len(all.others) > 0, isCreating(mine) && time.Until(end) > p.times.life/2:
		return none, errNotYet
	}
	if err := p.setSettled(ctx, mine.ID, end); err != nil {
		return none, err
	}
	mine.Metadata[keyState] = stateSettled
	return p.awaitAvailable(ctx, mine)
}

func unlessInDoubt(err error) error {
	if errors.Is(err, errInDoubt) {
		return errNotYet
	}
	return err
}

// whyNotListed explains why lists do not show this process's candidate, whose ID may be empty. Errors: errLost if it does not exist;
// errNotYet before its end. After its end it is withdrawn: otherwise each Create would leave another volume.
func (p *Provider) whyNotListed(ctx context.Context, id string, end time.Time) error {
	if id == "" {
		return errLost
	}
	v, err := p.get(ctx, id)
	switch {
	case errors.Is(err, providers.ErrNotFound), err == nil && !p.isCandidate(v.Metadata): // deleted with the volume of the name, or by hand
		return errLost
	case err != nil:
		return err
	case time.Now().Before(end):
		return errNotYet
	}
	return p.abandon(ctx, v.Volume, fmt.Errorf("Cinder has created volume %s, and its lists do not show it: ask the cloud's operator", id)) //nolint:staticcheck // a name
}

// setSettled makes a candidate of this process the volume of its name, before its end or never. Errors: errLost, errNotYet.
func (p *Provider) setSettled(ctx context.Context, id string, end time.Time) error {
	limited, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	err := p.write(limited, id, map[string]string{keyState: stateSettled})
	var answer *refusal
	if err == nil || !errors.As(err, &answer) || answer.status >= http.StatusInternalServerError {
		p.inDoubt.set(id) // also after a success, which a read may not show
	}
	switch {
	case refused(err, http.StatusNotFound):
		return errLost
	case err != nil && limited.Err() != nil && ctx.Err() == nil:
		return errNotYet // its end has passed
	}
	return err
}

// report logs each orphan once.
func (p *Provider) report(name string, orphans []volumes.Volume) {
	for _, v := range orphans {
		if _, reported := p.reported.LoadOrStore(v.ID, true); !reported && p.cfg.Log != nil {
			p.cfg.Log.WithField("volume", name).Warnf("Cinder's volume %s is empty and unused: the process that created it ended before it was ready. It will be deleted with volume %q, or by openstack volume delete %s", v.ID, name, v.ID)
		}
	}
}

// abandon withdraws a candidate because of err, and returns err.
func (p *Provider) abandon(ctx context.Context, v volumes.Volume, err error) error {
	if left := p.withdraw(ctx, v); left != nil {
		return fmt.Errorf("%w; and volume %s has not been deleted: %w", err, v.ID, left)
	}
	return err
}

// withdraw deletes candidates of this process, and never settles them afterwards. Errors: errInDoubt.
func (p *Provider) withdraw(ctx context.Context, candidates ...volumes.Volume) error {
	for _, v := range candidates {
		if time.Since(p.inDoubt.get(v.ID)) < p.times.patience-p.times.life {
			return fmt.Errorf("volume %s: %w", v.ID, errInDoubt)
		}
		p.withdrawn.Store(v.ID, true)
		if isCreating(v) && v.Metadata[keyState] != stateWithdrawn {
			_ = p.write(ctx, v.ID, map[string]string{keyState: stateWithdrawn}) // otherwise other nodes wait until it is deleted
		}
		if err := p.removeCandidate(ctx, v.ID); err != nil {
			return err
		}
	}
	return nil
}

// removeCandidate deletes a candidate, as soon as Cinder has created it.
func (p *Provider) removeCandidate(ctx context.Context, id string) error {
	for retry := (pause.Backoff{Most: 2 * time.Second}); ; {
		err := p.destroy(ctx, id)
		if !refused(err, http.StatusBadRequest) {
			return err
		}
		v, readErr := p.get(ctx, id)
		switch {
		case errors.Is(readErr, providers.ErrNotFound): // this read may be older than the volume
		case readErr != nil:
			return readErr
		case !slices.Contains([]string{"creating", "downloading", "available", "error"}, v.Status):
			return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, id, v.Status, err)
		}
		if err := retry.Wait(ctx); err != nil {
			return fmt.Errorf("volume %s is not deleted yet: %w", id, err)
		}
	}
}

// removeOrphans deletes the orphans of a name.
func (p *Provider) removeOrphans(ctx context.Context, name string) error {
	all, err := p.candidates(ctx, name)
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

// isCreating returns true for a volume that cannot be attached yet.
func isCreating(v volumes.Volume) bool { return v.Status == "creating" || v.Status == "downloading" }

// awaitAvailable waits until the volume of a name can be attached. A volume that Cinder cannot create is not deleted, since other
// nodes know it by its name.
func (p *Provider) awaitAvailable(ctx context.Context, v volumes.Volume) (volumes.Volume, error) {
	for retry := (pause.Backoff{Most: 2 * time.Second}); isCreating(v); {
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
	return v, failed(v)
}
