package digitalocean

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// snapshots is how DigitalOcean is asked for snapshots, which are complete at once. It takes one of a volume in use, too.
func (p *Provider) snapshots() managed.SnapshotCloud[godo.Volume, godo.Snapshot] {
	return managed.SnapshotCloud[godo.Volume, godo.Snapshot]{
		IsID: volumeID.MatchString, IDForm: "looks like 8fa70202-873f-11e6-8b68-000f533176b1",
		Instant: true, Show: showSnapshot, Taken: p.snapshotsTaken, Take: p.takeSnapshot, List: p.listSnapshots, Get: p.getSnapshot, Delete: p.deleteSnapshot,
	}
}

// snapshotName is the name of a volume's snapshot with this description: what can be read of that, and a digest of both.
func snapshotName(volume, description string) string { return labels.Name(volume, description, 64) }

func showSnapshot(from godo.Snapshot) managed.Snapshot[godo.Snapshot] {
	is := identityOf(from.Tags)
	created, _ := time.Parse(time.RFC3339, from.Created) // the zero time if DigitalOcean does not tell
	return managed.Snapshot[godo.Snapshot]{
		Snapshot: providers.Snapshot{
			ID: from.ID, Volume: from.ResourceID, Name: is.name, Size: int64(from.MinDiskSize) * gib, CreatedAt: created.UTC(),
			State: providers.SnapshotComplete, Record: recordOf(from.Tags),
		},
		Cluster: is.cluster, Marked: is.owned(), Native: from,
	}
}

func (p *Provider) snapshotsTaken(ctx context.Context, volume, description string) ([]godo.Snapshot, error) {
	name := snapshotName(volume, description)
	list, err := pages(ctx, p, "the request for the snapshots of volume "+volume, func(s godo.Snapshot) string { return s.ID }, func(ctx context.Context, page *godo.ListOptions) ([]godo.Snapshot, *godo.Response, error) {
		return p.api.Storage.ListSnapshots(ctx, volume, page)
	})
	return slices.DeleteFunc(list, func(s godo.Snapshot) bool { return s.Name != name }), found(err)
}

func (p *Provider) listSnapshots(ctx context.Context) ([]godo.Snapshot, error) {
	return pages(ctx, p, "the request for a list of snapshots", func(s godo.Snapshot) string { return s.ID }, func(ctx context.Context, page *godo.ListOptions) ([]godo.Snapshot, *godo.Response, error) {
		request, err := p.api.NewRequest(ctx, http.MethodGet, fmt.Sprintf("v2/snapshots?resource_type=volume&page=%d&per_page=%d", page.Page, page.PerPage), nil)
		if err != nil {
			return nil, nil, err
		}
		var is struct { // godo's ListVolume drops Meta, which shows that the answer is the API's
			Snapshots []godo.Snapshot
			Links     *godo.Links
			Meta      *godo.Meta
		}
		answer, err := p.api.Do(ctx, request, &is)
		if err == nil {
			answer.Links, answer.Meta = is.Links, is.Meta
		}
		return is.Snapshots, answer, err
	})
}

func (p *Provider) takeSnapshot(ctx context.Context, d managed.Disk[godo.Volume], description string) (godo.Snapshot, error) {
	in := &godo.SnapshotCreateRequest{
		VolumeID: d.ID, Name: snapshotName(d.ID, description), Description: sanitize.Clip(description),
		Tags: slices.Concat(textTags(textCluster, d.Cluster), textTags(textName, d.Name), recordTags(d.Record)),
	}
	var made *godo.Snapshot
	err := p.queue.Do(ctx, "volume "+d.ID, func(ctx context.Context) (err error) {
		made, _, err = p.api.Storage.CreateSnapshot(ctx, in)
		return p.explain(ctx, "the request to take a snapshot of volume "+d.ID, err, made != nil && made.ID != "")
	})
	switch {
	case isConflict(err):
		return godo.Snapshot{}, fmt.Errorf("%w: %w", managed.ErrTaken, err)
	case err != nil:
		return godo.Snapshot{}, found(err)
	}
	return *made, nil
}

func (p *Provider) getSnapshot(ctx context.Context, id string) (godo.Snapshot, error) {
	s, _, err := p.api.Snapshots.Get(ctx, id)
	if err := p.explain(ctx, "the request for snapshot "+id, err, s != nil && s.ID == id); err != nil {
		return godo.Snapshot{}, found(err)
	}
	return *s, nil
}

func (p *Provider) deleteSnapshot(ctx context.Context, s managed.Snapshot[godo.Snapshot]) error {
	answer, err := p.api.Snapshots.Delete(ctx, s.ID)
	return found(p.done(ctx, "the request to delete snapshot "+s.ID, answer, err))
}

// source returns the snapshot that spec names, if a volume can be made from it in the region, and the volume's size in GiB.
func (p *Provider) source(ctx context.Context, spec providers.Spec, gib int64, region string) (managed.Snapshot[godo.Snapshot], int64, error) {
	from, size, err := p.Source(ctx, spec, gib)
	switch {
	case err != nil:
		return from, 0, err
	case from.Native.ResourceType != "volume":
		return from, 0, fmt.Errorf("%w: snapshot %s is of a %s, and not of a volume", providers.ErrInvalid, from.ID, sanitize.Clip(from.Native.ResourceType))
	case !slices.Contains(from.Native.Regions, region):
		return from, 0, fmt.Errorf("%w: snapshot %s is in region %v, and this node in %s: run the service there", providers.ErrInvalid, from.ID, from.Native.Regions, region)
	}
	return from, size, nil
}
