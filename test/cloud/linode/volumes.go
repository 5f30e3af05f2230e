package linode

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// The cloud's tags for what package cloud has no field for.
const (
	labelKey   = "label"
	tagsKey    = "tags"    // JSON
	updatedKey = "updated" // time of the last change
)

const (
	gib         = 1 << 30
	leastSize   = 10
	mostSize    = 16384
	defaultSize = 20
)

type volume struct {
	ID             int64    `json:"id"`
	Label          string   `json:"label"`
	Status         string   `json:"status"`
	Size           int64    `json:"size"` // GiB
	Region         string   `json:"region"`
	LinodeID       *int64   `json:"linode_id"`
	LinodeLabel    *string  `json:"linode_label"`
	FilesystemPath string   `json:"filesystem_path"`
	Tags           []string `json:"tags"`
	HardwareType   string   `json:"hardware_type"`
	Encryption     string   `json:"encryption"`
	IOReady        bool     `json:"io_ready"`
	Created        string   `json:"created"`
	Updated        string   `json:"updated"`
}

// stamp formats a time.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05") }

func number(id string) int64 {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		panic("linode: " + id + " is not a Linode ID: cloud.Config.ID must be linode.ID")
	}
	return n
}

// present is the answer with the volume of the path as it is now.
func (f *Front) present(r *rest.Request) (rest.Answer, error) {
	v, err := f.truth(r)
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: show(v)}, nil
}

// show returns a volume as the API shows it.
func show(from cloud.Volume) volume {
	v := volume{
		ID: number(from.ID), Label: from.Tags[labelKey], Status: statusOf(from), Size: from.Size / gib, Region: from.Zone,
		FilesystemPath: "/dev/disk/by-id/scsi-0Linode_Volume_" + from.Tags[labelKey], Tags: tagsOf(from),
		HardwareType: "nvme", Encryption: "disabled", Created: stamp(from.CreatedAt), Updated: from.Tags[updatedKey],
	}
	if from.Encrypted {
		v.Encryption = "enabled"
	}
	if len(from.Attachments) > 0 {
		id, label := number(from.Attachments[0].Instance), labelOf(from.Attachments[0].Instance)
		v.LinodeID, v.LinodeLabel = &id, &label
		v.IOReady = from.Attachments[0].State == cloud.Attached
	}
	return v
}

func statusOf(v cloud.Volume) string {
	switch {
	case v.State == cloud.Creating:
		return "creating"
	case v.State == cloud.Broken:
		return "contact_support"
	case v.Modification != nil && (v.Modification.State == cloud.Modifying || v.Modification.State == cloud.Optimizing):
		return "resizing"
	default:
		return "active"
	}
}

func tagsOf(v cloud.Volume) []string {
	tags := []string{}
	if err := json.Unmarshal([]byte(v.Tags[tagsKey]), &tags); err != nil {
		panic(err) // impossible: it was encoded here
	}
	return tags
}

// exists reports whether the API shows a volume.
func exists(v cloud.Volume) bool { return v.State != cloud.Deleting && v.State != cloud.Deleted }

func (f *Front) listVolumes(r *rest.Request) (rest.Answer, error) {
	match, err := parseFilter(r.HTTP.Header.Get("X-Filter"))
	if err != nil {
		return rest.Answer{}, err
	}
	all := []volume{}
	for _, v := range r.VolumesThat(func(v cloud.Volume) bool { return exists(v) && match(v) }) {
		all = append(all, show(v))
	}
	slices.SortFunc(all, func(a, b volume) int { return int(a.ID - b.ID) })
	return paginate(r, all)
}

// seen returns the volume of a request, subject to Lag.
func seen(r *rest.Request) (cloud.Volume, error) {
	v, found := r.Volume(r.HTTP.PathValue("id"))
	if !found || !exists(v) {
		return cloud.Volume{}, notFound()
	}
	return v, nil
}

// truth returns the current state of the volume of a request.
func (f *Front) truth(r *rest.Request) (cloud.Volume, error) {
	v, ok := f.cloud.Volume(r.HTTP.PathValue("id"))
	if !ok || !exists(v) {
		return v, notFound()
	}
	return v, nil
}

func (f *Front) getVolume(r *rest.Request) (rest.Answer, error) {
	v, err := seen(r)
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: show(v)}, nil
}

func decode(r *rest.Request, into any) error {
	if err := r.Decode(into); err != nil {
		return bad("", "The request is not valid: %s", err)
	}
	return nil
}

var labelForm = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]+$`)

// checkLabel checks a label. The volume with this ID may have it already.
func (f *Front) checkLabel(label, id string) error {
	if len(label) > 32 || !labelForm.MatchString(label) || strings.Contains(label, "--") || strings.Contains(label, "__") {
		return bad("label", "Length must be 1-32 characters; only letters, digits, single dashes and underscores, the first a letter")
	}
	if f.cloud.AnyVolume(func(v cloud.Volume) bool { return v.Tags[labelKey] == label && v.ID != id }) {
		return bad("label", "Label must be unique among your Volumes")
	}
	return nil
}

// pack checks tags and removes duplicates, ignoring case.
func pack(tags []string) (string, error) {
	set := []string{}
	for _, tag := range tags {
		if n := utf8.RuneCountInString(tag); n < 3 || n > 50 {
			return "", bad("tags", "Length must be 3-50 characters")
		}
		if !slices.ContainsFunc(set, func(t string) bool { return strings.EqualFold(t, tag) }) {
			set = append(set, tag)
		}
	}
	slices.Sort(set)
	encoded, err := json.Marshal(set)
	return string(encoded), err
}

func (f *Front) createVolume(r *rest.Request) (rest.Answer, error) {
	in := struct {
		Label      string   `json:"label"`
		Region     string   `json:"region"`
		Size       *int64   `json:"size"`
		Tags       []string `json:"tags"`
		Encryption string   `json:"encryption"`
	}{Encryption: "disabled"}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	size := int64(defaultSize)
	if in.Size != nil {
		size = *in.Size
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	if err := f.checkLabel(in.Label, ""); err != nil {
		return rest.Answer{}, err
	}
	tags, err := pack(in.Tags)
	switch {
	case err != nil:
		return rest.Answer{}, err
	case size < leastSize || size > mostSize:
		return rest.Answer{}, bad("size", "Must be %d-%d", leastSize, mostSize)
	case in.Region == "":
		return rest.Answer{}, bad("region", "Either linode_id or region must be given")
	case !f.sells(in.Region):
		return rest.Answer{}, bad("region", "region is not valid")
	case in.Encryption != "enabled" && in.Encryption != "disabled":
		return rest.Answer{}, bad("encryption", "Must be one of enabled, disabled")
	case in.Encryption == "enabled" && slices.Contains(f.cfg.Plain, in.Region):
		return rest.Answer{}, bad("encryption", "Encryption is not available in this region")
	}
	v, err := r.CreateVolume(cloud.VolumeSpec{
		Shape: cloud.Shape{Size: size * gib}, Zone: in.Region, Encrypted: in.Encryption == "enabled",
		Tags: map[string]string{labelKey: in.Label, tagsKey: tags, updatedKey: stamp(time.Now())},
	})
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: show(v)}, nil
}

func (f *Front) updateVolume(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Label *string   `json:"label"`
		Tags  *[]string `json:"tags"`
	}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	v, err := f.truth(r)
	if err != nil {
		return rest.Answer{}, err
	}
	change := map[string]string{updatedKey: stamp(time.Now())}
	if in.Label != nil {
		if err := f.checkLabel(*in.Label, v.ID); err != nil {
			return rest.Answer{}, err
		}
		change[labelKey] = *in.Label
	}
	if in.Tags != nil {
		if change[tagsKey], err = pack(*in.Tags); err != nil {
			return rest.Answer{}, err
		}
	}
	_, err = r.EditTags([]string{v.ID}, func(_ string, tags map[string]string) error {
		for key, value := range change {
			tags[key] = value
		}
		return nil
	})
	if err != nil {
		return rest.Answer{}, err
	}
	return f.present(r)
}

// nothing is an empty answer.
var nothing = rest.Answer{Status: http.StatusOK, Body: struct{}{}}

func (f *Front) deleteVolume(r *rest.Request) (rest.Answer, error) {
	f.changing.Lock()
	defer f.changing.Unlock()
	v, err := f.truth(r)
	switch {
	case err != nil:
		return rest.Answer{}, err
	case len(v.Attachments) > 0:
		return rest.Answer{}, bad("", "Volume must be detached before it can be deleted")
	case statusOf(v) == "resizing":
		return rest.Answer{}, bad("", "Volume busy.")
	}
	if err := r.DeleteVolume(v.ID); err != nil {
		return rest.Answer{}, err
	}
	return nothing, nil
}

func (f *Front) resizeVolume(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Size int64 `json:"size"`
	}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	v, err := f.truth(r)
	switch {
	case err != nil:
		return rest.Answer{}, err
	case in.Size > mostSize:
		return rest.Answer{}, bad("size", "Must be %d-%d", leastSize, mostSize)
	case statusOf(v) != "active":
		return rest.Answer{}, bad("", "Only Volumes with a status of active can be resized")
	case in.Size*gib <= v.Size:
		return rest.Answer{}, bad("", "Storage volumes can only be resized up")
	}
	_, err = r.ModifyVolume(v.ID, func(v cloud.Volume) (cloud.Shape, error) {
		shape := v.Shape()
		shape.Size = in.Size * gib
		return shape, nil
	})
	if err != nil {
		return rest.Answer{}, err
	}
	return f.present(r)
}
