package digitalocean

import (
	"net/http"
	"slices"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

const ownRegion = "region" // of a snapshot

type snapshot struct {
	ID            string   `json:"id"`
	Name          string   `json:"name"`
	CreatedAt     string   `json:"created_at"`
	Regions       []string `json:"regions"`
	ResourceID    string   `json:"resource_id"`
	ResourceType  string   `json:"resource_type"`
	MinDiskSize   int64    `json:"min_disk_size"`
	SizeGigabytes float64  `json:"size_gigabytes"`
	Tags          []string `json:"tags"`
}

func (f *Front) showSnapshot(r *rest.Request, s cloud.Snapshot) snapshot {
	const filled = 0.25 // a snapshot's billed size is smaller than the volume
	return snapshot{
		ID: s.ID, Name: s.Tags[ownName], CreatedAt: stamp(s.StartedAt), Regions: []string{s.Tags[ownRegion]},
		ResourceID: s.VolumeID, ResourceType: "volume", MinDiskSize: s.Size / gib, SizeGigabytes: filled * float64(s.Size) / gib,
		Tags: f.shownTags(r, s.Tags),
	}
}

// snapshot returns the current state of a snapshot, regardless of Lag.
func (f *Front) snapshot(id string) (cloud.Snapshot, bool) {
	for _, s := range f.cloud.Snapshots() {
		if s.ID == id && s.State != cloud.SnapshotError {
			return s, true
		}
	}
	return cloud.Snapshot{}, false
}

func (f *Front) createSnapshot(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Name        string   `json:"name"`
		Tags        []string `json:"tags"`
		VolumeID    string   `json:"volume_id"`   // not in the reference, but sent by godo
		Description string   `json:"description"` // likewise
	}
	if err := f.decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	id := r.HTTP.PathValue("id")
	v, ok := f.cloud.Volume(id)
	switch {
	case !ok || !there(v) || in.VolumeID != "" && in.VolumeID != id:
		return rest.Answer{}, f.notFound()
	case in.Name == "" || len(in.Name) > 255:
		return rest.Answer{}, f.invalid("name must have 1 to 255 characters")
	}
	tags := map[string]string{ownName: in.Name, ownRegion: v.Zone}
	for _, name := range in.Tags {
		if !tagName.MatchString(name) {
			return rest.Answer{}, f.invalid("%q is no name of a tag", name)
		}
	}
	f.mu.Lock()
	taken := slices.ContainsFunc(f.cloud.Snapshots(), func(s cloud.Snapshot) bool { return s.Tags[ownName] == in.Name && s.State != cloud.SnapshotError })
	var s cloud.Snapshot
	var err error
	if !taken {
		for _, name := range in.Tags {
			tags[tagMark+f.canonical(name)] = ""
		}
		s, err = r.CreateSnapshot(id, in.Description, tags)
	}
	f.mu.Unlock()
	switch {
	case taken:
		return rest.Answer{}, f.refuse(http.StatusConflict, "a snapshot with the name %q already exists", in.Name)
	case err != nil:
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusCreated, Body: map[string]any{"snapshot": f.showSnapshot(r, s)}}, nil
}

func (f *Front) snapshots(r *rest.Request, is func(cloud.Snapshot) bool) []snapshot {
	var shown []snapshot
	for _, s := range r.Snapshots() {
		if s.State != cloud.SnapshotError && is(s) {
			shown = append(shown, f.showSnapshot(r, s))
		}
	}
	return shown
}

func (f *Front) listSnapshotsOf(r *rest.Request) (rest.Answer, error) {
	if _, err := f.query(r, "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	id := r.HTTP.PathValue("id")
	if _, err := f.find(r, id); err != nil {
		return rest.Answer{}, err
	}
	return page(f, r, "snapshots", f.snapshots(r, func(s cloud.Snapshot) bool { return s.VolumeID == id }))
}

func (f *Front) listSnapshots(r *rest.Request) (rest.Answer, error) {
	given, err := f.query(r, "resource_type", "page", "per_page")
	if err != nil {
		return rest.Answer{}, err
	}
	return page(f, r, "snapshots", f.snapshots(r, func(cloud.Snapshot) bool { return given.Get("resource_type") != "droplet" }))
}

func (f *Front) getSnapshot(r *rest.Request) (rest.Answer, error) {
	all := f.snapshots(r, func(s cloud.Snapshot) bool { return s.ID == r.HTTP.PathValue("id") })
	if len(all) == 0 {
		return rest.Answer{}, f.notFound()
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"snapshot": all[0]}}, nil
}

func (f *Front) deleteSnapshot(r *rest.Request) (rest.Answer, error) {
	return rest.Answer{Status: http.StatusNoContent}, r.DeleteSnapshot(r.HTTP.PathValue("id"))
}
