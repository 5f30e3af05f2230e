package openstack

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/snapshots"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// snapshots returns Cinder's functions for snapshots. Cinder copies a volume as it is, also in use if the request has Force; as after a
// power failure, the journal of the file system repairs the copy.
func (p *Provider) snapshots() managed.SnapshotCloud[volume, snapshots.Snapshot] {
	return managed.SnapshotCloud[volume, snapshots.Snapshot]{
		IsID: isUUID, IDForm: "looks like 2f1c5b9e-8d3a-4b7e-9c6d-1a2b3c4d5e6f", MaxPause: 5 * time.Second,
		Show: showSnapshot, Taken: p.snapshotsTaken, Take: p.takeSnapshot, List: p.listSnapshots, Get: p.getSnapshot, Delete: p.deleteSnapshot, Deleted: p.removeRetired,
	}
}

func showSnapshot(from snapshots.Snapshot) managed.Snapshot[snapshots.Snapshot] {
	cluster, marked := from.Metadata[keyCluster]
	s := managed.Snapshot[snapshots.Snapshot]{
		Snapshot: providers.Snapshot{
			ID: from.ID, Volume: from.VolumeID, Name: decode(from.Metadata[keyName]), Size: int64(from.Size) * gib, CreatedAt: from.CreatedAt.UTC(),
			State: providers.SnapshotComplete, Record: recordOf(from.Metadata),
		},
		Cluster: decode(cluster), Marked: marked, Native: from,
	}
	switch from.Status {
	case "creating":
		s.State = providers.SnapshotCreating
	case "error", "deleting", "error_deleting":
		s.State, s.Detail = providers.SnapshotFailed, sanitize.Clip(from.Status)
	}
	return s
}

// snapshotsOf returns the snapshots of a volume.
func (p *Provider) snapshotsOf(ctx context.Context, id string) ([]snapshots.Snapshot, error) {
	all, _, err := list(ctx, p, "the request for the snapshots of volume "+id, "", "snapshots", url.Values{"volume_id": {id}}, func(s snapshots.Snapshot) string { return s.ID })
	return slices.DeleteFunc(all, func(s snapshots.Snapshot) bool { return s.VolumeID != id }), err
}

func (p *Provider) listSnapshots(ctx context.Context) ([]snapshots.Snapshot, error) {
	all, _, err := list(ctx, p, "the request for a list of snapshots", "", "snapshots", url.Values{}, func(s snapshots.Snapshot) string { return s.ID })
	return all, err
}

func (p *Provider) snapshotsTaken(ctx context.Context, volume, description string) ([]snapshots.Snapshot, error) {
	all, err := p.snapshotsOf(ctx, volume)
	origin := labels.Digest(volume, description)
	return slices.DeleteFunc(all, func(s snapshots.Snapshot) bool { return s.Metadata[keyOrigin] != origin }), err
}

func (p *Provider) takeSnapshot(ctx context.Context, d managed.Disk[volume], description string) (snapshots.Snapshot, error) {
	marks := recordMarks(d.Record)
	maps.Copy(marks, map[string]string{keyCluster: encode(p.cfg.Cluster), keyName: encode(d.Name), keyOrigin: labels.Digest(d.ID, description)})
	made, err := call(ctx, p, "the snapshot of volume "+d.ID, func(ctx context.Context, s *session) (*snapshots.Snapshot, error) {
		return snapshots.Create(ctx, s.volume, snapshots.CreateOpts{
			VolumeID: d.ID, Force: true, Name: labels.Name(p.cfg.Cluster, d.Name, 255), Description: encode(sanitize.Clip(description)), Metadata: marks,
		}).Extract()
	})
	switch {
	case refused(err, http.StatusBadRequest):
		return snapshots.Snapshot{}, isBusy(d.Native, err)
	case err != nil:
		return snapshots.Snapshot{}, err
	}
	return *made, nil
}

func (p *Provider) getSnapshot(ctx context.Context, id string) (snapshots.Snapshot, error) {
	s, err := call(ctx, p, "the request for snapshot "+id, func(ctx context.Context, s *session) (*snapshots.Snapshot, error) {
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
	for retry, asked, now := (pause.Backoff{Most: 2 * time.Second}), false, s.Native; ; {
		if now.Status == "error_deleting" {
			return fmt.Errorf("Cinder could not delete snapshot %s: volumes created from it may depend on it: ask the cloud's operator", s.ID) //nolint:staticcheck // a name
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
			return fmt.Errorf("snapshot %s is not deleted yet: %w", s.ID, err)
		}
	}
}

// removeRetired deletes retired volumes. Cinder refuses those that still have snapshots.
func (p *Provider) removeRetired(ctx context.Context) error {
	all, err := p.list(ctx, map[string]string{keyRetired: encode(p.cfg.Cluster)})
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
