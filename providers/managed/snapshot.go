package managed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/keymutex"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Snapshot is a snapshot as an answer of the cloud shows it.
type Snapshot[S any] struct {
	providers.Snapshot
	Cluster string // the cluster that took it, by its marks; empty if its name cannot be read
	Marked  bool   // some cluster took it
	Native  S      // the cloud's own description
}

func (s Snapshot[S]) is(state providers.SnapshotState) bool { return s.State == state }

// SnapshotCloud is how a cloud is asked for snapshots. V and S are its own descriptions of a disk and of a snapshot.
type SnapshotCloud[V, S any] struct {
	IsID     func(id string) bool
	IDForm   string        // "looks like snap-0123456789abcdef0"
	MaxPause time.Duration // between two questions about a snapshot that is not complete

	// Instant tells that a snapshot's instant has passed when Take returns. Otherwise it has when the snapshot is complete.
	Instant bool

	// Show translates an answer. It asks nothing.
	Show func(S) Snapshot[S]

	// Taken returns the snapshots of the volume that Take has taken with this description.
	Taken func(ctx context.Context, id, description string) ([]S, error)

	// Take takes a snapshot with marks by which Taken and List find it, with the volume's cluster, name and Record. Errors: ErrTaken
	// if the cloud says that there is such a snapshot.
	Take func(ctx context.Context, d Disk[V], description string) (S, error)

	// List returns the snapshots of the cluster, and may return more.
	List func(ctx context.Context) ([]S, error)

	// Get returns a snapshot by its id, whoever it belongs to. Errors: providers.ErrNotFound only if the cloud said so.
	Get func(ctx context.Context, id string) (S, error)

	// Delete destroys a snapshot. Errors: providers.ErrNotFound.
	Delete func(ctx context.Context, s Snapshot[S]) error

	// Deleted is called when a snapshot is known not to exist. Optional.
	Deleted func(ctx context.Context) error
}

// Snapshots keeps the contract of providers.Snapshotter for a SnapshotCloud.
type Snapshots[V, S any] struct {
	volumes *Provider[V]
	cloud   SnapshotCloud[V, S]
	takes   keymutex.KeyMutex // by volume and description
}

// NewSnapshots makes Snapshots of the volumes of p. It calls nobody.
func NewSnapshots[V, S any](p *Provider[V], cloud SnapshotCloud[V, S]) *Snapshots[V, S] {
	s := &Snapshots[V, S]{volumes: p, cloud: cloud}
	p.countSnapshots = func(ctx context.Context) (int, error) {
		all, err := s.ListSnapshots(ctx)
		return len(all), err
	}
	return s
}

// Snapshot takes a snapshot, or finds the one that was taken with that description.
func (s *Snapshots[V, S]) Snapshot(ctx context.Context, id string, spec providers.SnapshotSpec) (*providers.Snapshot, error) {
	if err := providers.CheckRecord(spec.Record); err != nil {
		return nil, err
	}
	d, err := s.volumes.GetOurs(ctx, id)
	if err != nil {
		return nil, err
	}
	unlock, _, err := s.takes.Lock(ctx, labels.Digest(id, spec.Description))
	if err != nil {
		return nil, err
	}
	defer unlock()
	snapshot, found, err := s.taken(ctx, id, spec.Description)
	switch {
	case err != nil:
		return nil, err
	case !found:
		d.Record = over(d.Record, spec.Record)
		err = spec.Taking(ctx, func(ctx context.Context) (err error) {
			if snapshot, err = s.take(ctx, d, spec.Description); err == nil {
				snapshot, err = s.passed(ctx, snapshot)
			}
			return err
		})
	default:
		snapshot, err = s.passed(ctx, snapshot)
	}
	if err != nil {
		return nil, err
	}
	return &snapshot.Snapshot, nil
}

// passed waits until the snapshot's instant has passed.
func (s *Snapshots[V, S]) passed(ctx context.Context, snapshot Snapshot[S]) (Snapshot[S], error) {
	if s.cloud.Instant {
		return snapshot, nil
	}
	return s.complete(ctx, snapshot)
}

// over returns record with the entries of another written over it.
func over(record, other providers.Record) providers.Record {
	record = maps.Clone(record)
	if record == nil {
		record = providers.Record{}
	}
	maps.Copy(record, other)
	return record
}

// FindSnapshot returns a snapshot of this cluster.
func (s *Snapshots[V, S]) FindSnapshot(ctx context.Context, id string) (*providers.Snapshot, error) {
	none := fmt.Errorf("%w: %s has no snapshot %s of cluster %q", providers.ErrNotFound, s.volumes.cloud.Name, sanitize.Clip(id), s.volumes.cloud.Cluster)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !s.cloud.IsID(id) {
		return nil, none
	}
	native, err := s.cloud.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	snapshot := s.cloud.Show(native)
	if !snapshot.Marked || snapshot.Cluster != s.volumes.cloud.Cluster {
		return nil, none
	}
	return &snapshot.Snapshot, nil
}

// ListSnapshots returns the snapshots of this cluster, the oldest first.
func (s *Snapshots[V, S]) ListSnapshots(ctx context.Context) ([]*providers.Snapshot, error) {
	all, err := s.cloud.List(ctx)
	if err != nil {
		return nil, err
	}
	var ours []*providers.Snapshot
	for _, native := range all {
		if snapshot := s.cloud.Show(native); snapshot.Marked && snapshot.Cluster == s.volumes.cloud.Cluster {
			ours = append(ours, &snapshot.Snapshot)
		}
	}
	slices.SortFunc(ours, providers.OlderSnapshot)
	return ours, nil
}

// taken returns the snapshot that was taken with that description, unless it has failed.
func (s *Snapshots[V, S]) taken(ctx context.Context, id, description string) (snapshot Snapshot[S], found bool, err error) {
	all, err := s.cloud.Taken(ctx, id, description)
	if err != nil {
		return snapshot, false, err
	}
	for _, native := range all {
		if snapshot := s.cloud.Show(native); !snapshot.is(providers.SnapshotFailed) {
			return snapshot, true, nil
		}
	}
	return snapshot, false, nil
}

// take takes a snapshot, or returns the one that another node has just taken.
func (s *Snapshots[V, S]) take(ctx context.Context, d Disk[V], description string) (Snapshot[S], error) {
	native, err := s.cloud.Take(ctx, d, description)
	switch {
	case err == nil:
		return s.cloud.Show(native), nil
	case !errors.Is(err, ErrTaken):
		return Snapshot[S]{}, err
	}
	snapshot, found, lookErr := s.taken(ctx, d.ID, description)
	if lookErr == nil && !found {
		lookErr = err
	}
	return snapshot, lookErr
}

// complete waits until a snapshot is complete.
func (s *Snapshots[V, S]) complete(ctx context.Context, snapshot Snapshot[S]) (Snapshot[S], error) {
	for retry := (pause.Backoff{Most: s.cloud.MaxPause}); snapshot.is(providers.SnapshotCreating); {
		native, err := s.cloud.Get(ctx, snapshot.ID)
		switch {
		case err == nil:
			snapshot = s.cloud.Show(native)
		case !errors.Is(err, providers.ErrNotFound) || !s.volumes.cloud.Stale:
			return snapshot, err
		}
		if !snapshot.is(providers.SnapshotCreating) {
			break
		}
		if err := retry.Wait(ctx); err != nil {
			return snapshot, fmt.Errorf("snapshot %s is not complete yet: %w", snapshot.ID, err)
		}
	}
	if snapshot.is(providers.SnapshotFailed) {
		return snapshot, fmt.Errorf("snapshot %s cannot be used: %s says %q", snapshot.ID, s.volumes.cloud.Name, snapshot.Detail)
	}
	return snapshot, nil
}

// DeleteSnapshot destroys a snapshot of this cluster. One that is not there, or is another's, is success.
func (s *Snapshots[V, S]) DeleteSnapshot(ctx context.Context, id string) error {
	if !s.cloud.IsID(id) {
		return ctx.Err()
	}
	native, err := s.cloud.Get(ctx, id)
	if err == nil {
		snapshot := s.cloud.Show(native)
		if snapshot.Cluster != s.volumes.cloud.Cluster {
			return nil
		}
		err = s.cloud.Delete(ctx, snapshot)
	}
	if err != nil && !errors.Is(err, providers.ErrNotFound) {
		return err
	}
	if s.cloud.Deleted != nil {
		return s.cloud.Deleted(ctx)
	}
	return nil
}

// Source returns the snapshot that spec names, once it is complete: one of this cluster, or one that no cluster took, as are
// backups made by other means. gib is the size asked for, 0 for the snapshot's; size is the volume's. The Record returned is the
// volume's: the snapshot's, with the entries of spec.Record written over it.
// Errors: providers.ErrInvalid if no such volume can be made from it.
func (s *Snapshots[V, S]) Source(ctx context.Context, spec providers.Spec, gib int64) (from Snapshot[S], size int64, err error) {
	cloud := &s.volumes.cloud
	refuse := func(format string, args ...any) (Snapshot[S], int64, error) {
		return from, 0, fmt.Errorf("%w: snapshot %s %s", providers.ErrInvalid, sanitize.Clip(spec.Snapshot), fmt.Sprintf(format, args...))
	}
	if !s.cloud.IsID(spec.Snapshot) {
		return refuse("does not exist: an id of %s %s", cloud.Name, s.cloud.IDForm)
	}
	native, err := s.cloud.Get(ctx, spec.Snapshot)
	switch {
	case errors.Is(err, providers.ErrNotFound):
		return refuse("does not exist in the account, project and region of these credentials at %s: check its id", cloud.Name)
	case err != nil:
		return from, 0, err
	}
	from = s.cloud.Show(native)
	if from.Marked && from.Cluster != cloud.Cluster {
		return refuse("is of cluster %q: create the volume there", from.Cluster)
	}
	if from, err = s.complete(ctx, from); err != nil {
		return from, 0, err
	}
	least := providers.InGiB(from.Size)
	if size = cmp.Or(gib, least); size < least {
		return refuse("holds %d GiB, more than the %d GiB asked for: leave the size out, or ask for more", least, gib)
	}
	from.Record = over(from.Record, spec.Record)
	return from, size, nil
}
