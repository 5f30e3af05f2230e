package digitalocean

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Snapshot takes a copy, or returns the one that is there: a snapshot is called by a digest of the volume and the description.
// DigitalOcean takes it at the moment of the request, in use or not.
func (p *Provider) Snapshot(ctx context.Context, id, description string) (*providers.Snapshot, error) {
	d, err := p.GetOurs(ctx, id)
	if err != nil {
		return nil, err
	}
	name := labels.Name(id, description, longestSnapshotName)
	if s, err := p.snapshotNamed(ctx, id, name); s != nil || err != nil {
		return s, err
	}
	tags := slices.Concat(textTags(textCluster, d.Cluster), textTags(textName, d.Name), recordTags(d.Record))
	var made *godo.Snapshot
	err = p.queue.Do(ctx, "volume "+id, func(ctx context.Context) (err error) {
		made, _, err = p.api.Storage.CreateSnapshot(ctx, &godo.SnapshotCreateRequest{VolumeID: id, Name: name, Description: sanitize.Clip(description), Tags: tags})
		return p.explain(ctx, "the request to take a snapshot of volume "+id, err, made != nil && made.ID != "")
	})
	switch {
	case isMissing(err):
		return nil, fmt.Errorf("%w: %w", providers.ErrNotFound, err)
	case isConflict(err): // another has just taken it
		if s, err := p.snapshotNamed(ctx, id, name); s != nil || err != nil {
			return s, err
		}
		return nil, err
	case err != nil:
		return nil, err
	}
	return snapshotOf(*made), nil
}

// longestSnapshotName is enough for what can be read of a description, and its digest.
const longestSnapshotName = 64

// snapshotNamed returns the snapshot of a volume that is called so, nil if there is none.
func (p *Provider) snapshotNamed(ctx context.Context, volume, name string) (*providers.Snapshot, error) {
	list, err := pages(ctx, p, "the request for the snapshots of volume "+volume, func(s godo.Snapshot) string { return s.ID }, func(ctx context.Context, page *godo.ListOptions) ([]godo.Snapshot, *godo.Response, error) {
		return p.api.Storage.ListSnapshots(ctx, volume, page)
	})
	if isMissing(err) {
		return nil, fmt.Errorf("%w: %w", providers.ErrNotFound, err)
	}
	for _, s := range list {
		if s.Name == name {
			return snapshotOf(s), nil
		}
	}
	return nil, err
}

func snapshotOf(s godo.Snapshot) *providers.Snapshot {
	created, _ := time.Parse(time.RFC3339, s.Created) // the zero time if DigitalOcean does not tell
	return &providers.Snapshot{ID: s.ID, Volume: s.ResourceID, Size: int64(s.MinDiskSize) * gib, CreatedAt: created.UTC()}
}

// DeleteSnapshot destroys a snapshot of this cluster.
func (p *Provider) DeleteSnapshot(ctx context.Context, id string) error {
	if !volumeID.MatchString(id) {
		return ctx.Err()
	}
	s, err := p.snapshot(ctx, id)
	if isMissing(err) {
		return nil
	} else if err != nil {
		return err
	}
	if identityOf(s.Tags).cluster != p.cluster() {
		return nil
	}
	answer, err := p.api.Snapshots.Delete(ctx, id)
	if err := p.done(ctx, "the request to delete snapshot "+id, answer, err); !isMissing(err) {
		return err
	}
	return nil
}

func (p *Provider) snapshot(ctx context.Context, id string) (*godo.Snapshot, error) {
	s, _, err := p.api.Snapshots.Get(ctx, id)
	return s, p.explain(ctx, "the request for snapshot "+id, err, s != nil && s.ID == id)
}

// source returns a snapshot that a volume can be made from: one of this cluster, or one that is nobody's, as backups made by
// other means are.
func (p *Provider) source(ctx context.Context, id, region string) (*godo.Snapshot, error) {
	if !volumeID.MatchString(id) {
		return nil, fmt.Errorf("%w: snapshot %q: an id looks like 8fa70202-873f-11e6-8b68-000f533176b1", providers.ErrInvalid, sanitize.Clip(id))
	}
	s, err := p.snapshot(ctx, id)
	is := identity{}
	if s != nil {
		is = identityOf(s.Tags)
	}
	switch {
	case isMissing(err):
		return nil, fmt.Errorf("%w: DigitalOcean has no snapshot %s in this account", providers.ErrInvalid, id)
	case err != nil:
		return nil, err
	case s.ResourceType != "volume":
		return nil, fmt.Errorf("%w: snapshot %s is of a %s, and not of a volume", providers.ErrInvalid, id, sanitize.Clip(s.ResourceType))
	case is.owned() && is.cluster != p.cluster():
		return nil, fmt.Errorf("%w: snapshot %s is of cluster %q: create the volume there", providers.ErrInvalid, id, is.cluster)
	case !slices.Contains(s.Regions, region):
		return nil, fmt.Errorf("%w: snapshot %s is in region %v, and this node in %s: run the service there", providers.ErrInvalid, id, s.Regions, region)
	}
	return s, nil
}
