package openstack

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/snapshots"
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// snapshotsOf lists the snapshots of a volume.
func (p *Provider) snapshotsOf(ctx context.Context, id string) ([]snapshots.Snapshot, error) {
	all, _, err := paged(ctx, p, "the request for the snapshots of volume "+id, fmt.Sprintf("limit=%d&volume_id=%s", perPage, id), func(s *session, query listOptions) pagination.Pager {
		return snapshots.ListDetail(s.volume, query)
	}, func(page pagination.Page) (some []snapshots.Snapshot, last string, header http.Header, err error) {
		some, err = snapshots.ExtractSnapshots(page)
		if len(some) > 0 {
			last = some[len(some)-1].ID
		}
		return some, last, nil, err
	})
	kept := all[:0]
	for _, s := range all {
		if s.VolumeID == id {
			kept = append(kept, s)
		}
	}
	return kept, err
}

// Snapshot returns when the snapshot is complete. Cinder takes the volume as it is at that moment, in use or not, if it is told
// that this is meant; as after a loss of power, the file system's journal makes it whole.
func (p *Provider) Snapshot(ctx context.Context, id, description string) (*providers.Snapshot, error) {
	d, err := p.GetOurs(ctx, id)
	if err != nil {
		return nil, err
	}
	unlock, _, err := p.names.Lock(ctx, "snapshot of "+id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	origin := labels.Digest(id, description)
	same, err := p.snapshotsOf(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, s := range same {
		if s.Metadata[keyOrigin] == origin && s.Status != "error" && s.Status != "deleting" {
			return p.awaitSnapshot(ctx, s)
		}
	}
	marks := recordMarks(d.Record)
	maps.Copy(marks, map[string]string{keyCluster: encode(p.cluster), keyName: encode(d.Name), keyOrigin: origin})
	made, err := call(ctx, p, "the snapshot of volume "+id, func(ctx context.Context, s *session) (*snapshots.Snapshot, error) {
		return snapshots.Create(ctx, s.volume, snapshots.CreateOpts{
			VolumeID: id, Force: true, Name: labels.Name(p.cluster, d.Name, 255), Description: encode(sanitize.Clip(description)), Metadata: marks,
		}).Extract()
	})
	switch {
	case refused(err, http.StatusBadRequest):
		return nil, fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, id, sanitize.Clip(d.Native.Status), err)
	case err != nil:
		return nil, err
	}
	return p.awaitSnapshot(ctx, *made)
}

// awaitSnapshot waits until the snapshot is complete, and returns it.
func (p *Provider) awaitSnapshot(ctx context.Context, s snapshots.Snapshot) (*providers.Snapshot, error) {
	for retry := (pace.Backoff{Most: 5 * time.Second}); s.Status == "creating"; {
		now, err := p.getSnapshot(ctx, s.ID)
		if err != nil {
			return nil, err
		}
		if s = now; s.Status != "creating" {
			break
		}
		if err := retry.Wait(ctx); err != nil {
			return nil, fmt.Errorf("snapshot %s is not complete yet: %w", s.ID, err)
		}
	}
	if s.Status == "error" || s.Status == "deleting" || s.Status == "error_deleting" {
		return nil, fmt.Errorf("snapshot %s cannot be used: Cinder calls it %q", s.ID, sanitize.Clip(s.Status))
	}
	return &providers.Snapshot{ID: s.ID, Volume: s.VolumeID, Size: int64(s.Size) * gib, CreatedAt: s.CreatedAt.UTC()}, nil
}

func (p *Provider) getSnapshot(ctx context.Context, id string) (snapshots.Snapshot, error) {
	s, err := call(ctx, p, "the question about snapshot "+id, func(ctx context.Context, s *session) (*snapshots.Snapshot, error) {
		return snapshots.Get(ctx, s.volume, id).Extract()
	})
	if err != nil {
		return snapshots.Snapshot{}, err
	}
	return *s, nil
}

// DeleteSnapshot destroys a snapshot of this cluster, and then volumes that were deleted before and kept by their snapshots.
func (p *Provider) DeleteSnapshot(ctx context.Context, id string) error {
	if !isUUID(id) {
		return ctx.Err()
	}
	for retry, asked := (pace.Backoff{Most: 2 * time.Second}), false; ; {
		s, err := p.getSnapshot(ctx, id)
		switch {
		case missing(err, id):
			return p.removeRetired(ctx)
		case err != nil:
			return err
		case s.Metadata[keyCluster] != encode(p.cluster):
			return nil
		case s.Status == "error_deleting":
			return fmt.Errorf("Cinder could not delete snapshot %s: volumes made from it may depend on it: ask the cloud's operator", id) //nolint:staticcheck // a name
		case !asked:
			_, err = call(ctx, p, "the deletion of snapshot "+id, func(ctx context.Context, s *session) (done, error) {
				return done{}, snapshots.Delete(ctx, s.volume, id).ExtractErr()
			})
			if err != nil && !refused(err, http.StatusBadRequest, http.StatusNotFound) {
				return err
			}
			if asked = err == nil; asked {
				continue
			}
		}
		if err := retry.Wait(ctx); err != nil {
			return fmt.Errorf("snapshot %s is not removed yet: %w", id, err)
		}
	}
}

// removeRetired completes what Delete has begun. Cinder refuses what snapshots still keep.
func (p *Provider) removeRetired(ctx context.Context) error {
	all, err := p.list(ctx, map[string]string{keyRetired: encode(p.cluster)})
	if err != nil {
		return err
	}
	for _, v := range all {
		if v.Metadata[keyState] != stateRetired {
			continue
		}
		if err := p.destroy(ctx, v.ID); err != nil && !refused(err, http.StatusBadRequest) {
			return err
		}
	}
	return nil
}

// sourceOf returns a snapshot that a volume can be made from, once it is complete: one of this cluster, or one that is nobody's,
// as backups made by other means are.
func (p *Provider) sourceOf(ctx context.Context, id string) (snapshots.Snapshot, error) {
	if !isUUID(id) {
		return snapshots.Snapshot{}, fmt.Errorf("%w: snapshot %q: an id looks like 2f1c5b9e-8d3a-4b7e-9c6d-1a2b3c4d5e6f", providers.ErrInvalid, sanitize.Clip(id))
	}
	s, err := p.getSnapshot(ctx, id)
	if err != nil {
		return s, invalid(err, "")
	}
	if owner, owned := s.Metadata[keyCluster]; owned && decode(owner) != p.cluster {
		return s, fmt.Errorf("%w: snapshot %s is of cluster %q: create the volume there", providers.ErrInvalid, id, decode(owner))
	}
	_, err = p.awaitSnapshot(ctx, s)
	return s, err
}
