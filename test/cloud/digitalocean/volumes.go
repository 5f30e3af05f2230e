package digitalocean

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

const gib = 1 << 30

const mostGiB = 16 << 10

// What package cloud has no field for is in tags with these keys. DigitalOcean's tags follow tagMark.
const (
	ownName        = "name"
	ownDescription = "description"
	ownFilesystem  = "filesystem_type"
	ownLabel       = "filesystem_label"
	tagMark        = "tag:"
)

// region is a region in an answer.
type region struct {
	Name      string   `json:"name"`
	Slug      string   `json:"slug"`
	Sizes     []string `json:"sizes"`
	Features  []string `json:"features"`
	Available bool     `json:"available"`
}

func regionOf(slug string) region {
	return region{"Region " + slug, slug, []string{"s-1vcpu-1gb", "s-2vcpu-4gb"}, []string{"private_networking", "backups", "ipv6", "metadata", "storage"}, true}
}

type volume struct {
	ID              string   `json:"id"`
	Region          region   `json:"region"`
	DropletIDs      []int64  `json:"droplet_ids"`
	Name            string   `json:"name"`
	Description     string   `json:"description"`
	SizeGigabytes   int64    `json:"size_gigabytes"`
	CreatedAt       string   `json:"created_at"`
	FilesystemType  string   `json:"filesystem_type"`
	FilesystemLabel string   `json:"filesystem_label"`
	Tags            []string `json:"tags"`
}

func (f *Front) show(r *rest.Request, v cloud.Volume) volume {
	shown := volume{
		ID: v.ID, Region: regionOf(v.Zone), DropletIDs: []int64{}, Name: v.Tags[ownName], Description: v.Tags[ownDescription],
		SizeGigabytes: v.Size / gib, CreatedAt: stamp(v.CreatedAt), FilesystemType: v.Tags[ownFilesystem], FilesystemLabel: v.Tags[ownLabel],
		Tags: f.shownTags(r, v.Tags),
	}
	for _, a := range v.Attachments {
		if f.cfg.Early || a.State == cloud.Attached || a.State == cloud.Busy {
			shown.DropletIDs = append(shown.DropletIDs, number(a.Instance))
		}
	}
	return shown
}

func number(id string) int64 {
	n, _ := strconv.ParseInt(id, 10, 64) // as ID makes it
	return n
}

// there reports whether the API shows a volume.
func there(v cloud.Volume) bool {
	return v.State == cloud.Creating || v.State == cloud.Available || v.State == cloud.InUse
}

// Serial returns the serial of the volume's device in a droplet's kernel.
func (f *Front) Serial(volume string) string {
	v, _ := f.cloud.Volume(volume)
	return v.Tags[ownName]
}

func (f *Front) listVolumes(r *rest.Request) (rest.Answer, error) {
	given, err := f.query(r, "name", "region", "page", "per_page")
	if err != nil {
		return rest.Answer{}, err
	}
	var shown []volume
	for _, v := range r.VolumesThat(func(v cloud.Volume) bool {
		return there(v) && (!given.Has("name") || v.Tags[ownName] == given.Get("name")) && (!given.Has("region") || v.Zone == given.Get("region"))
	}) {
		shown = append(shown, f.show(r, v))
	}
	return page(f, r, "volumes", shown)
}

// find returns a volume, subject to Lag.
func (f *Front) find(r *rest.Request, id string) (cloud.Volume, error) {
	v, found := r.Volume(id)
	if !found || !there(v) {
		return cloud.Volume{}, f.notFound()
	}
	return v, nil
}

func (f *Front) getVolume(r *rest.Request) (rest.Answer, error) {
	v, err := f.find(r, r.HTTP.PathValue("id"))
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"volume": f.show(r, v)}}, nil
}

var volumeName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

func (f *Front) createVolume(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Name            string   `json:"name"`
		Description     string   `json:"description"`
		SizeGigabytes   int64    `json:"size_gigabytes"`
		Region          string   `json:"region"`
		SnapshotID      string   `json:"snapshot_id"`
		FilesystemType  string   `json:"filesystem_type"`
		FilesystemLabel string   `json:"filesystem_label"`
		Tags            []string `json:"tags"`
	}
	if err := f.decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	switch {
	case !volumeName.MatchString(in.Name):
		return rest.Answer{}, f.invalid("name must be lowercase and be composed only of numbers, letters and \"-\", up to a limit of 64 characters. The name must begin with a letter.")
	case !slices.Contains(f.cloud.Zones(), in.Region):
		return rest.Answer{}, f.invalid("region %q is not available", in.Region)
	case in.SnapshotID == "" && (in.SizeGigabytes < 1 || in.SizeGigabytes > mostGiB):
		return rest.Answer{}, f.invalid("size_gigabytes must be between 1 and %d", mostGiB)
	case !slices.Contains([]string{"", "ext4", "xfs"}, in.FilesystemType):
		return rest.Answer{}, f.invalid("filesystem_type must be ext4 or xfs")
	case in.FilesystemLabel != "" && in.FilesystemType == "":
		return rest.Answer{}, f.invalid("filesystem_label may only be used in conjunction with filesystem_type")
	case len(in.Tags) > 0 && !f.May(r.HTTP, "tag:create"):
		return rest.Answer{}, f.refuse(http.StatusForbidden, "You are not authorized to perform this operation")
	}
	spec := cloud.VolumeSpec{Shape: cloud.Shape{Size: in.SizeGigabytes * gib}, Zone: in.Region, SnapshotID: in.SnapshotID, Tags: map[string]string{
		ownName: in.Name, ownDescription: in.Description, ownFilesystem: in.FilesystemType, ownLabel: in.FilesystemLabel,
	}}
	if in.SnapshotID != "" {
		spec.Size = 0
		switch s, ok := f.snapshot(in.SnapshotID); {
		case !ok:
			return rest.Answer{}, f.notFound()
		case s.Tags[ownRegion] != in.Region:
			return rest.Answer{}, f.invalid("the snapshot is not available in region %s", in.Region)
		case s.State == cloud.SnapshotPending:
			return rest.Answer{}, f.pending("Snapshot")
		}
	}
	for _, name := range in.Tags {
		if !tagName.MatchString(name) {
			return rest.Answer{}, f.invalid("%q is no name of a tag", name)
		}
	}
	f.mu.Lock()
	taken := f.cloud.AnyVolume(func(v cloud.Volume) bool {
		return there(v) && v.Zone == in.Region && v.Tags[ownName] == in.Name
	})
	var v cloud.Volume
	var err error
	if !taken {
		for _, name := range in.Tags {
			spec.Tags[tagMark+f.canonical(name)] = ""
		}
		v, err = r.CreateVolume(spec)
	}
	f.mu.Unlock()
	switch {
	case taken:
		return rest.Answer{}, f.refuse(http.StatusConflict, "a volume with the name %q already exists in region %s", in.Name, in.Region)
	case err != nil:
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusCreated, Body: map[string]any{"volume": f.show(r, v)}}, nil
}

func (f *Front) deleteVolume(r *rest.Request) (rest.Answer, error) {
	id := r.HTTP.PathValue("id")
	for _, s := range f.cloud.Snapshots() {
		if s.VolumeID == id && s.State == cloud.SnapshotPending {
			return rest.Answer{}, f.pending("Volume")
		}
	}
	err := r.DeleteVolume(id)
	if isInUse(err) {
		return rest.Answer{}, f.refuse(http.StatusConflict, "A volume that's attached to a Droplet cannot be deleted. Please detach it first before deleting.")
	}
	return rest.Answer{Status: http.StatusNoContent}, err
}
