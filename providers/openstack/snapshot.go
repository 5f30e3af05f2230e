package openstack

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/snapshots"
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// snapshots is how Cinder is asked for snapshots. It takes the volume as it is at that moment, in use or not, if it is told that
// this is meant; as after a loss of power, the file system's journal makes it whole.
func (p *Provider) snapshots() managed.SnapshotCloud[volume, snapshots.Snapshot] {
	return managed.SnapshotCloud[volume, snapshots.Snapshot]{
		IsID: isUUID, IDForm: "looks like 2f1c5b9e-8d3a-4b7e-9c6d-1a2b3c4d5e6f", MaxPause: 5 * time.Second,
		Show: showSnapshot, Taken: p.snapshotsTaken, Take: p.takeSnapshot, Get: p.getSnapshot, Delete: p.deleteSnapshot, Deleted: p.removeRetired,
	}
}

func showSnapshot(from snapshots.Snapshot) managed.Snapshot[snapshots.Snapshot] {
	cluster, marked := from.Metadata[keyCluster]
	s := managed.Snapshot[snapshots.Snapshot]{
		Snapshot: providers.Snapshot{ID: from.ID, Volume: from.VolumeID, Size: int64(from.Size) * gib, CreatedAt: from.CreatedAt.UTC()},
		Cluster:  decode(cluster), Marked: marked, Record: recordOf(from.Metadata), Creating: from.Status == "creating", Native: from,
	}
	switch from.Status {
	case "error", "deleting", "error_deleting":
		s.Failed = fmt.Errorf("snapshot %s cannot be used: Cinder calls it %q", from.ID, sanitize.Clip(from.Status))
	}
	return s
}

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

func (p *Provider) snapshotsTaken(ctx context.Context, volume, description string) ([]snapshots.Snapshot, error) {
	all, err := p.snapshotsOf(ctx, volume)
	origin := labels.Digest(volume, description)
	return slices.DeleteFunc(all, func(s snapshots.Snapshot) bool { return s.Metadata[keyOrigin] != origin }), err
}

func (p *Provider) takeSnapshot(ctx context.Context, d managed.Disk[volume], description string) (snapshots.Snapshot, error) {
	marks := recordMarks(d.Record)
	maps.Copy(marks, map[string]string{keyCluster: encode(p.cluster), keyName: encode(d.Name), keyOrigin: labels.Digest(d.ID, description)})
	made, err := call(ctx, p, "the snapshot of volume "+d.ID, func(ctx context.Context, s *session) (*snapshots.Snapshot, error) {
		return snapshots.Create(ctx, s.volume, snapshots.CreateOpts{
			VolumeID: d.ID, Force: true, Name: labels.Name(p.cluster, d.Name, 255), Description: encode(sanitize.Clip(description)), Metadata: marks,
		}).Extract()
	})
	switch {
	case refused(err, http.StatusBadRequest):
		return snapshots.Snapshot{}, fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, d.ID, sanitize.Clip(d.Native.Status), err)
	case err != nil:
		return snapshots.Snapshot{}, err
	}
	return *made, nil
}

func (p *Provider) getSnapshot(ctx context.Context, id string) (snapshots.Snapshot, error) {
	s, err := call(ctx, p, "the question about snapshot "+id, func(ctx context.Context, s *session) (*snapshots.Snapshot, error) {
		return snapshots.Get(ctx, s.volume, id).Extract()
	})
	switch {
	case err != nil && !missing(err, id) && refused(err, http.StatusNotFound):
		return snapshots.Snapshot{}, unknown("snapshot", id, err)
	case err != nil:
		return snapshots.Snapshot{}, err
	}
	return *s, nil
}

// deleteSnapshot returns when the snapshot is gone.
func (p *Provider) deleteSnapshot(ctx context.Context, s managed.Snapshot[snapshots.Snapshot]) error {
	for retry, asked, now := (pace.Backoff{Most: 2 * time.Second}), false, s.Native; ; {
		if now.Status == "error_deleting" {
			return fmt.Errorf("Cinder could not delete snapshot %s: volumes made from it may depend on it: ask the cloud's operator", s.ID) //nolint:staticcheck // a name
		}
		if !asked {
			_, err := call(ctx, p, "the deletion of snapshot "+s.ID, func(ctx context.Context, session *session) (done, error) {
				return done{}, snapshots.Delete(ctx, session.volume, s.ID).ExtractErr()
			})
			if err != nil && !refused(err, http.StatusBadRequest, http.StatusNotFound) {
				return err
			}
			asked = err == nil
		}
		var err error
		if now, err = p.getSnapshot(ctx, s.ID); err != nil {
			return err
		}
		if err := retry.Wait(ctx); err != nil {
			return fmt.Errorf("snapshot %s is not removed yet: %w", s.ID, err)
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
