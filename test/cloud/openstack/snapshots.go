package openstack

import (
	"errors"
	"maps"
	"net/http"
	"slices"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

func viewSnapshot(s cloud.Snapshot) map[string]any {
	word := map[cloud.SnapshotState]string{cloud.SnapshotPending: "creating", cloud.SnapshotCompleted: "available", cloud.SnapshotError: "error", cloud.SnapshotDeleting: "deleting"}[s.State]
	return map[string]any{
		"id": s.ID, "name": s.Tags[tagName], "description": orNull(s.Description), "volume_id": s.VolumeID, "status": word,
		"size": s.Size / gib, "created_at": stamp(s.StartedAt), "updated_at": nil, "metadata": metadataOf(s.Tags),
		"os-extended-snapshot-attributes:progress": "100%", "os-extended-snapshot-attributes:project_id": Project,
	}
}

func (f *Front) listSnapshots(r *rest.Request) (rest.Answer, error) {
	wanted, err := metadataFilter(r)
	if err != nil {
		return rest.Answer{}, err
	}
	volume := r.HTTP.URL.Query().Get("volume_id")
	all := slices.DeleteFunc(r.Snapshots(), func(s cloud.Snapshot) bool {
		return volume != "" && s.VolumeID != volume || !matches(s.Tags, wanted) || !isNamed(r, s.Tags)
	})
	slices.Reverse(all)
	return page(f, r, "snapshots", all, func(s cloud.Snapshot) string { return s.ID }, viewSnapshot, "volume_id", "metadata", "name")
}

func noSnapshot(id string) error { return missing("Snapshot %s could not be found.", id) }

func (f *Front) showSnapshot(r *rest.Request) (rest.Answer, error) {
	id := r.HTTP.PathValue("id")
	for _, s := range r.Snapshots() {
		if s.ID == id {
			return rest.Answer{Status: http.StatusOK, Body: map[string]any{"snapshot": viewSnapshot(s)}}, nil
		}
	}
	return rest.Answer{}, noSnapshot(id)
}

func (f *Front) createSnapshot(r *rest.Request) (rest.Answer, error) {
	type order struct {
		Volume   string            `json:"volume_id"`
		Name     string            `json:"name"`
		Text     string            `json:"description"`
		Force    bool              `json:"force"`
		Metadata map[string]string `json:"metadata"`
	}
	in, err := decode[order](r, "snapshot")
	if err != nil {
		return rest.Answer{}, err
	}
	if err := errors.Join(checkMetadata(in.Metadata), checkText(in.Name), checkText(in.Text)); err != nil {
		return rest.Answer{}, err
	}
	v, err := f.now(in.Volume)
	if err != nil {
		return rest.Answer{}, err
	}
	refusal := bad("Invalid volume: Volume %s status must be available, but current status is: %s.", v.ID, statusOf(v))
	if status := statusOf(v); status != "available" && (status != "in-use" || !in.Force) {
		return rest.Answer{}, refusal
	}
	tags := maps.Clone(in.Metadata)
	if tags == nil {
		tags = map[string]string{}
	}
	tags[tagName] = in.Name
	s, err := r.CreateSnapshot(v.ID, in.Text, tags)
	if err != nil {
		return rest.Answer{}, refusal
	}
	return rest.Answer{Status: http.StatusAccepted, Body: map[string]any{"snapshot": viewSnapshot(s)}}, nil
}

func (f *Front) deleteSnapshot(r *rest.Request) (rest.Answer, error) {
	id := r.HTTP.PathValue("id")
	for _, s := range f.cloud.Snapshots() {
		if s.ID == id && (s.State == cloud.SnapshotPending || s.State == cloud.SnapshotDeleting) {
			return rest.Answer{}, bad("Invalid snapshot: Snapshot status must be available or error.")
		}
	}
	if err := r.RetireSnapshot(id); err != nil {
		return rest.Answer{}, noSnapshot(id)
	}
	return rest.Answer{Status: http.StatusAccepted}, nil
}
