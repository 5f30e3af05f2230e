package digitalocean

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

var tagName = regexp.MustCompile(`^[a-zA-Z0-9_\-:]{1,255}$`)

// canonical returns a tag with the capitals of its creator. The caller holds the lock.
func (f *Front) canonical(name string) string {
	small := strings.ToLower(name)
	if f.tags[small] == "" {
		f.tags[small] = name
	}
	return f.tags[small]
}

// shownTags returns the tags of a volume or snapshot if the caller may read tags.
func (f *Front) shownTags(r *rest.Request, own map[string]string) []string {
	if !f.May(r.HTTP, "tag:read") {
		return nil
	}
	tags := []string{}
	for key := range own {
		if tag, is := strings.CutPrefix(key, tagMark); is {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

func (f *Front) createTag(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := f.decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	if !tagName.MatchString(in.Name) {
		return rest.Answer{}, f.invalid("name must have 1 to 255 letters, numbers, colons, dashes and underscores")
	}
	f.mu.Lock()
	exists := f.tags[strings.ToLower(in.Name)] != ""
	f.canonical(in.Name)
	f.mu.Unlock()
	if exists {
		return rest.Answer{}, f.invalid("tag already exists")
	}
	return rest.Answer{Status: http.StatusCreated, Body: map[string]any{"tag": showTag(in.Name, nil, nil)}}, nil
}

// showTag shows a tag with how many volumes and snapshots of volumes have it. Which of them has got it last, nobody here knows:
// the oldest stands for it.
func showTag(name string, volumes, snapshots []string) map[string]any {
	counted := func(kind string, ids []string) map[string]any {
		shown := map[string]any{"count": len(ids)}
		if len(ids) > 0 {
			shown["last_tagged_uri"] = "https://api.digitalocean.com/v2/" + kind + "/" + ids[0]
		}
		return shown
	}
	all := counted("volumes", append(volumes, snapshots...))
	for _, kind := range []string{"droplets", "images", "databases"} {
		all[kind] = counted(kind, nil)
	}
	all["volumes"], all["volume_snapshots"] = counted("volumes", volumes), counted("snapshots", snapshots)
	return map[string]any{"name": name, "resources": all}
}

// getTag counts only what the caller may see.
func (f *Front) getTag(r *rest.Request) (rest.Answer, error) {
	tag := r.HTTP.PathValue("tag")
	f.mu.Lock()
	known := f.tags[strings.ToLower(tag)] == tag
	f.mu.Unlock()
	if !known {
		return rest.Answer{}, f.notFound()
	}
	var volumes, snapshots []string
	if f.May(r.HTTP, "block_storage:read") {
		for _, v := range r.VolumesThat(func(v cloud.Volume) bool { _, has := v.Tags[tagMark+tag]; return has && there(v) }) {
			volumes = append(volumes, v.ID)
		}
	}
	if f.May(r.HTTP, "block_storage_snapshot:read") {
		for _, s := range r.Snapshots() {
			if _, has := s.Tags[tagMark+tag]; has {
				snapshots = append(snapshots, s.ID)
			}
		}
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"tag": showTag(tag, volumes, snapshots)}}, nil
}

func (f *Front) tagResources(r *rest.Request) (rest.Answer, error) {
	return f.changeTag(r, func(tags map[string]string, tag string) { tags[tagMark+tag] = "" })
}

func (f *Front) untagResources(r *rest.Request) (rest.Answer, error) {
	return f.changeTag(r, func(tags map[string]string, tag string) { delete(tags, tagMark+tag) })
}

func (f *Front) changeTag(r *rest.Request, change func(tags map[string]string, tag string)) (rest.Answer, error) {
	var in struct {
		Resources []struct {
			ID   string `json:"resource_id"`
			Type string `json:"resource_type"`
		} `json:"resources"`
	}
	if err := f.decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	tag := r.HTTP.PathValue("tag")
	f.mu.Lock()
	known := f.tags[strings.ToLower(tag)] == tag
	f.mu.Unlock()
	if !known {
		return rest.Answer{}, f.notFound()
	}
	var all []string
	for _, resource := range in.Resources {
		v, isVolume := f.cloud.Volume(resource.ID)
		_, isSnapshot := f.snapshot(resource.ID)
		if (resource.Type != "volume" || !isVolume || !there(v)) && (resource.Type != "volume_snapshot" || !isSnapshot) {
			return rest.Answer{}, f.notFound()
		}
		all = append(all, resource.ID)
	}
	if len(all) == 0 {
		return rest.Answer{}, f.invalid("resources must not be empty")
	}
	_, err := r.EditTags(all, func(_ string, tags map[string]string) error {
		change(tags, tag)
		return nil
	})
	if errors.Is(err, cloud.ErrNoVolume) {
		return rest.Answer{}, f.notFound()
	}
	return rest.Answer{Status: http.StatusNoContent}, err
}
