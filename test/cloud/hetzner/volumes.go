package hetzner

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

const gib = 1 << 30

// Limits of a volume's size in what Hetzner calls GB. The devices have as many GiB.
const leastGB, mostGB = 10, 10240

// What package cloud has no field for is in tags with these keys. Hetzner's labels follow labelMark.
const (
	ownName      = "name"
	ownProtected = "protected" // present if protected
	labelMark    = "label:"
)

type volume struct {
	ID          int64             `json:"id"`
	Created     string            `json:"created"`
	Name        string            `json:"name"`
	Server      *int64            `json:"server"`
	Location    location          `json:"location"`
	Size        int64             `json:"size"`
	LinuxDevice string            `json:"linux_device"`
	Protection  map[string]bool   `json:"protection"`
	Labels      map[string]string `json:"labels"`
	Status      string            `json:"status"`
	Format      *string           `json:"format"`
}

func labelsOf(tags map[string]string) map[string]string {
	labels := map[string]string{}
	for key, value := range tags {
		if label, is := strings.CutPrefix(key, labelMark); is {
			labels[label] = value
		}
	}
	return labels
}

func setLabels(tags, labels map[string]string) {
	maps.DeleteFunc(tags, func(key, _ string) bool { return strings.HasPrefix(key, labelMark) })
	for key, value := range labels {
		tags[labelMark+key] = value
	}
}

func protected(v cloud.Volume) bool {
	_, is := v.Tags[ownProtected]
	return is
}

func (f *Front) show(v cloud.Volume) volume {
	shown := volume{
		ID: number(v.ID), Created: stamp(v.CreatedAt), Name: v.Tags[ownName], Location: locationOf(v.Zone), Size: v.Size / gib,
		LinuxDevice: "/dev/disk/by-id/scsi-0HC_Volume_" + v.ID, Protection: map[string]bool{"delete": protected(v)},
		Labels: labelsOf(v.Tags), Status: "available",
	}
	if v.State == cloud.Creating {
		shown.Status = "creating"
	}
	for _, a := range v.Attachments {
		if !f.cfg.Late || a.State != cloud.Attaching {
			server := number(a.Instance)
			shown.Server = &server
		}
	}
	return shown
}

// there reports whether the API shows a volume.
func there(v cloud.Volume) bool {
	return v.State == cloud.Creating || v.State == cloud.Available || v.State == cloud.InUse
}

func (f *Front) listVolumes(r *rest.Request) (rest.Answer, error) {
	if err := query(r, "name", "status*", "label_selector", "sort*", "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	match, err := selected(r)
	if err != nil {
		return rest.Answer{}, err
	}
	given := r.HTTP.URL.Query()
	all := []volume{}
	for _, v := range r.VolumesThat(func(v cloud.Volume) bool {
		return there(v) && (!given.Has("name") || v.Tags[ownName] == given.Get("name"))
	}) {
		shown := f.show(v)
		if match(shown.Labels) && (!given.Has("status") || slices.Contains(given["status"], shown.Status)) {
			all = append(all, shown)
		}
	}
	if err := sorted(r, all, map[string]func(a, b volume) int{
		"id":      func(a, b volume) int { return cmp.Compare(a.ID, b.ID) },
		"name":    func(a, b volume) int { return cmp.Compare(a.Name, b.Name) },
		"created": func(a, b volume) int { return cmp.Compare(a.Created, b.Created) },
	}, "id"); err != nil {
		return rest.Answer{}, err
	}
	return page(r, "volumes", all)
}

// find returns a volume, subject to Lag.
func find(r *rest.Request) (cloud.Volume, error) {
	id := r.HTTP.PathValue("id")
	v, found := r.Volume(id)
	if !found || !there(v) {
		return cloud.Volume{}, notFound("volume", id)
	}
	return v, nil
}

// truth returns the current state of a volume.
func (f *Front) truth(r *rest.Request) (cloud.Volume, error) {
	id := r.HTTP.PathValue("id")
	v, ok := f.cloud.Volume(id)
	if !ok || !there(v) {
		return v, notFound("volume", id)
	}
	return v, nil
}

func (f *Front) getVolume(r *rest.Request) (rest.Answer, error) {
	v, err := find(r)
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"volume": f.show(v)}}, nil
}

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?$`)

func checkVolumeName(name string) error {
	if !volumeName.MatchString(name) {
		return invalid("name", "must be 1 to 64 alphanumeric characters, dashes, underscores and dots, beginning and ending with an alphanumeric character")
	}
	return nil
}

// taken returns an error if another volume has the name. The caller holds the lock.
func (f *Front) taken(name, but string) error {
	if f.cloud.AnyVolume(func(v cloud.Volume) bool { return there(v) && v.ID != but && v.Tags[ownName] == name }) {
		return refusal(problem{"uniqueness_error", "volume name is already used", map[string]any{"fields": []any{map[string]any{"name": "name"}}}})
	}
	return nil
}

func (f *Front) createVolume(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Name     *string           `json:"name"`
		Size     *int64            `json:"size"`
		Location json.RawMessage   `json:"location"`
		Labels   map[string]string `json:"labels"`
	}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	switch {
	case in.Name == nil:
		return rest.Answer{}, invalid("name", "is missing")
	case in.Size == nil || *in.Size < leastGB || *in.Size > mostGB:
		return rest.Answer{}, invalid("size", "must be between %d and %d", leastGB, mostGB)
	}
	if err := errors.Join(checkVolumeName(*in.Name), checkLabels(in.Labels)); err != nil {
		return rest.Answer{}, err
	}
	zone := f.zone(in.Location)
	if zone == "" {
		return rest.Answer{}, invalid("location", "unknown location")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.taken(*in.Name, ""); err != nil {
		return rest.Answer{}, err
	}
	tags := map[string]string{ownName: *in.Name}
	setLabels(tags, in.Labels)
	v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: *in.Size * gib, Type: "volume"}, Zone: zone, Tags: tags})
	if err != nil {
		return rest.Answer{}, err
	}
	a := f.begin(v, "create_volume", "")
	return rest.Answer{Status: http.StatusCreated, Body: map[string]any{"volume": f.show(v), "action": a, "next_actions": []any{}}}, nil
}

// zone returns the location that a request gives by name or number, or "" if it does not exist.
func (f *Front) zone(named json.RawMessage) string {
	for _, zone := range f.cloud.Zones() {
		if l := locationOf(zone); string(named) == strconv.Quote(zone) || string(named) == strconv.FormatInt(l.ID, 10) {
			return zone
		}
	}
	return ""
}

func (f *Front) updateVolume(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Name   *string            `json:"name"`
		Labels *map[string]string `json:"labels"`
	}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	if in.Name != nil {
		if err := checkVolumeName(*in.Name); err != nil {
			return rest.Answer{}, err
		}
	}
	if in.Labels != nil {
		if err := checkLabels(*in.Labels); err != nil {
			return rest.Answer{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.idle(r)
	if err != nil {
		return rest.Answer{}, err
	}
	if in.Name != nil {
		if err := f.taken(*in.Name, v.ID); err != nil {
			return rest.Answer{}, err
		}
	}
	_, err = r.EditTags([]string{v.ID}, func(_ string, tags map[string]string) error {
		if in.Name != nil {
			tags[ownName] = *in.Name
		}
		if in.Labels != nil {
			setLabels(tags, *in.Labels)
		}
		return nil
	})
	if err != nil {
		return rest.Answer{}, err
	}
	v, _ = f.cloud.Volume(v.ID)
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"volume": f.show(v)}}, nil
}

func (f *Front) deleteVolume(r *rest.Request) (rest.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.idle(r)
	switch {
	case err != nil:
		return rest.Answer{}, err
	case len(v.Attachments) > 0:
		return rest.Answer{}, refuse("resource_in_use", "volume with ID '%s' is still attached to a server", v.ID)
	case protected(v):
		return rest.Answer{}, refuse("protected", "volume is protected from deletion")
	}
	if err := r.DeleteVolume(v.ID); err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusNoContent}, nil
}
