package openstack

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

const gib = 1 << 30

// Tags for what package cloud has no field for. Their keys cannot be metadata keys.
const (
	tagName        = "\x00name"
	tagDescription = "\x00description"
)

// metadataOf returns the tags that are metadata.
func metadataOf(tags map[string]string) map[string]string {
	metadata := maps.Clone(tags)
	maps.DeleteFunc(metadata, func(key, _ string) bool { return strings.HasPrefix(key, "\x00") })
	return metadata
}

// statusOf returns Cinder's status of a volume.
func statusOf(v cloud.Volume) string {
	if m := v.Modification; m != nil && m.State == cloud.Modifying && (v.State == cloud.Available || v.State == cloud.InUse) {
		return "extending"
	}
	if v.State == cloud.InUse {
		switch v.Attachments[0].State {
		case cloud.Attaching:
			return "reserved"
		case cloud.Detaching:
			return "detaching"
		}
	}
	return string(v.State)
}

func (f *Front) viewVolume(r *rest.Request, v cloud.Volume) map[string]any {
	attachments := []map[string]any{}
	if status := statusOf(v); v.State == cloud.InUse && status != "reserved" {
		a := v.Attachments[0]
		attachments = append(attachments, map[string]any{
			"id": v.ID, "volume_id": v.ID, "server_id": a.Instance, "attachment_id": attachmentID(v.ID, a),
			"attached_at": stamp(a.Since), "device": a.Device, "host_name": nil,
		})
	}
	link := "http://" + r.HTTP.Host + "/volume/v3/" + Project + "/volumes/" + v.ID
	return map[string]any{
		"id": v.ID, "name": v.Tags[tagName], "description": orNull(v.Tags[tagDescription]), "status": statusOf(v), "size": v.Size / gib,
		"availability_zone": f.volumeZone(v.Zone), "volume_type": v.Type, "created_at": stamp(v.CreatedAt), "updated_at": nil,
		"attachments": attachments, "metadata": metadataOf(v.Tags), "snapshot_id": orNull(v.SnapshotID), "source_volid": nil,
		"consistencygroup_id": nil, "replication_status": nil, "user_id": User, "os-vol-tenant-attr:tenant_id": Project,
		"bootable": "false", "encrypted": v.Encrypted, "multiattach": slices.Contains(f.cfg.Multiattach, v.Type),
		"links": []map[string]any{{"rel": "self", "href": link}, {"rel": "bookmark", "href": link}},
	}
}

// volumeZone returns Cinder's name of a zone of Nova.
func (f *Front) volumeZone(zone string) string {
	if f.cfg.VolumeZone != "" && zone == f.cloud.Zones()[0] {
		return f.cfg.VolumeZone
	}
	return zone
}

func attachmentID(volume string, a cloud.Attachment) string {
	return uuid("attachment " + volume + a.Instance + a.Since.String())
}

// seen returns a volume, subject to Lag.
func seen(r *rest.Request, id string) (cloud.Volume, error) {
	v, found := r.Volume(id)
	if !found || v.State == cloud.Deleted {
		return cloud.Volume{}, noVolume(id)
	}
	return v, nil
}

func noVolume(id string) error { return missing("Volume %s could not be found.", id) }

// now returns the current state of a volume.
func (f *Front) now(id string) (cloud.Volume, error) {
	v, ok := f.cloud.Volume(id)
	if !ok || v.State == cloud.Deleted {
		return v, noVolume(id)
	}
	return v, nil
}

func (f *Front) showVolume(r *rest.Request) (rest.Answer, error) {
	v, err := seen(r, r.HTTP.PathValue("id"))
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"volume": f.viewVolume(r, v)}}, nil
}

// SetPage sets Cinder's maximum page size (osapi_max_limit); the default is 1000.
func (f *Front) SetPage(most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.page = most
}

// page returns one page of a list under the key kind. A full page always has a next one.
func page[T any](f *Front, r *rest.Request, kind string, all []T, id func(T) string, view func(T) map[string]any, filters ...string) (rest.Answer, error) {
	query := r.HTTP.URL.Query()
	for name := range query {
		if !slices.Contains(append(filters, "limit", "marker", "all_tenants"), name) {
			return rest.Answer{}, bad("Invalid filters %s are found in query options.", name)
		}
	}
	f.mu.Lock()
	most := f.page
	f.mu.Unlock()
	limit := most
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return rest.Answer{}, bad("limit param must be an integer")
		}
		limit = min(n, most)
	}
	if marker := query.Get("marker"); marker != "" {
		at := slices.IndexFunc(all, func(one T) bool { return id(one) == marker })
		if at < 0 {
			return rest.Answer{}, missing("Marker %s could not be found.", marker)
		}
		all = all[at+1:]
	}
	body := map[string]any{}
	if len(all) >= limit && limit > 0 {
		all = all[:limit]
		next := url.URL{Scheme: "http", Host: r.HTTP.Host, Path: r.HTTP.URL.Path}
		query.Set("marker", id(all[limit-1]))
		next.RawQuery = query.Encode()
		body[kind+"_links"] = []map[string]any{{"rel": "next", "href": next.String()}}
	}
	views := make([]map[string]any, 0, len(all))
	for _, one := range all {
		views = append(views, view(one))
	}
	body[kind] = views
	return rest.Answer{Status: http.StatusOK, Body: body}, nil
}

func (f *Front) listVolumes(r *rest.Request) (rest.Answer, error) {
	wanted, err := metadataFilter(r)
	if err != nil {
		return rest.Answer{}, err
	}
	all := r.VolumesThat(func(v cloud.Volume) bool {
		return v.State != cloud.Deleted && matches(v.Tags, wanted) && isNamed(r, v.Tags)
	})
	slices.Reverse(all) // the newest first
	return page(f, r, "volumes", all, func(v cloud.Volume) string { return v.ID }, func(v cloud.Volume) map[string]any { return f.viewVolume(r, v) }, "metadata", "name")
}

// isNamed reports whether an object has the name that a list is filtered by, if any.
func isNamed(r *rest.Request, tags map[string]string) bool {
	query := r.HTTP.URL.Query()
	return !query.Has("name") || query.Get("name") == tags[tagName]
}

var metadataKey = regexp.MustCompile(`^[a-zA-Z0-9_:. -]{1,255}$`)

// checkMetadata refuses what Cinder, or the database of some clouds, refuses.
func checkMetadata(metadata map[string]string) error {
	for key, value := range metadata {
		switch {
		case !metadataKey.MatchString(key):
			return bad("Invalid input for field/attribute metadata. Value: %v. %q does not match any of the regexes: '^[a-zA-Z0-9-_:. ]{1,255}$'", metadata, key)
		case utf8.RuneCountInString(value) > 255:
			return bad("Invalid input for field/attribute %s. Value: %s. %q is too long", key, value, value)
		}
		if err := checkText(value); err != nil {
			return err
		}
	}
	return nil
}

func checkText(text string) error {
	if strings.ContainsFunc(text, func(c rune) bool { return c > 0xFFFF }) {
		return refuse(http.StatusInternalServerError, "computeFault", "Incorrect string value for column 'value' (1366)")
	}
	return nil
}

func (f *Front) createVolume(r *rest.Request) (rest.Answer, error) {
	type order struct {
		Size       *int64            `json:"size"`
		Zone       string            `json:"availability_zone"`
		Name       string            `json:"name"`
		Text       string            `json:"description"`
		Metadata   map[string]string `json:"metadata"`
		SnapshotID string            `json:"snapshot_id"`
		Type       string            `json:"volume_type"`

		// Clients send these although they do not use them.
		Group  *string `json:"consistencygroup_id"`
		Source *string `json:"source_volid"`
		Image  *string `json:"imageRef"`
		Backup *string `json:"backup_id"`
	}
	in, err := decode[order](r, "volume")
	if err != nil {
		return rest.Answer{}, err
	}
	if in.Group != nil || in.Source != nil || in.Image != nil || in.Backup != nil {
		return rest.Answer{}, bad("a volume from something other than a snapshot is not simulated")
	}
	if err := errors.Join(checkMetadata(in.Metadata), checkText(in.Name), checkText(in.Text)); err != nil {
		return rest.Answer{}, err
	}
	spec := cloud.VolumeSpec{SnapshotID: in.SnapshotID, Tags: maps.Clone(in.Metadata), Doomed: f.cfg.Unmakeable != nil && f.cfg.Unmakeable(in.Name), Stays: true}
	if spec.Tags == nil {
		spec.Tags = map[string]string{}
	}
	spec.Tags[tagName], spec.Tags[tagDescription] = in.Name, in.Text
	if spec.Type = f.cfg.Types[0]; in.Type != "" {
		spec.Type = in.Type
	}
	switch {
	case in.Size != nil && *in.Size < 1, in.Size == nil && in.SnapshotID == "":
		return rest.Answer{}, bad("Invalid input received: Volume size '%v' must be an integer and greater than 0", in.Size)
	case utf8.RuneCountInString(in.Name) > 255:
		return rest.Answer{}, bad("Invalid input for field/attribute name. Value: %s. %q is too long", in.Name, in.Name)
	case !slices.Contains(f.cfg.Types, spec.Type):
		return rest.Answer{}, missing("Volume type with name %s could not be found.", in.Type)
	}
	for _, zone := range f.cloud.Zones() {
		if in.Zone == f.volumeZone(zone) {
			spec.Zone = zone
		}
	}
	if in.Zone != "" && spec.Zone == "" {
		return rest.Answer{}, bad("Availability zone '%s' is invalid.", in.Zone)
	}
	if in.Size != nil {
		spec.Size = *in.Size * gib
	}
	if err := f.checkQuota(spec.Size / gib); err != nil {
		return rest.Answer{}, err
	}
	v, err := r.CreateVolume(spec)
	switch {
	case errors.Is(err, cloud.ErrNoSnapshot):
		return rest.Answer{}, missing("Snapshot %s could not be found.", in.SnapshotID)
	case errors.Is(err, cloud.ErrState):
		return rest.Answer{}, bad("Invalid snapshot: Originating snapshot status must be one of available values")
	case errors.Is(err, cloud.ErrTooSmall):
		return rest.Answer{}, bad("Invalid input received: Volume size '%d'GB cannot be smaller than the snapshot size. They must be >= original snapshot size.", spec.Size/gib)
	case err != nil:
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusAccepted, Body: map[string]any{"volume": f.viewVolume(r, v)}}, nil
}

// limits answers as Cinder's "Show absolute limits for project". -1 is no limit.
func (f *Front) limits(r *rest.Request) (rest.Answer, error) {
	all, used := r.VolumesThat(func(cloud.Volume) bool { return true }), int64(0)
	for _, v := range all {
		used += v.Size / gib
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"limits": map[string]any{"rate": []any{}, "absolute": map[string]any{
		"totalVolumesUsed": len(all), "maxTotalVolumes": -1, "totalGigabytesUsed": used, "maxTotalVolumeGigabytes": f.cfg.Gigabytes,
		"totalSnapshotsUsed": len(r.Snapshots()), "maxTotalSnapshots": 10,
		"totalBackupsUsed": 0, "maxTotalBackups": 10, "totalBackupGigabytesUsed": 0, "maxTotalBackupGigabytes": 1000,
	}}}}, nil
}

func (f *Front) checkQuota(more int64) error {
	f.cloud.AnyVolume(func(v cloud.Volume) bool { more += v.Size / gib; return false })
	if more > f.cfg.Gigabytes {
		return overQuota("VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. The quota is %dG.", f.cfg.Gigabytes)
	}
	return nil
}

func (f *Front) deleteVolume(r *rest.Request) (rest.Answer, error) {
	if len(r.HTTP.URL.RawQuery) > 0 {
		return rest.Answer{}, bad("deleting snapshots with a volume is not simulated")
	}
	v, err := f.now(r.HTTP.PathValue("id"))
	if err != nil {
		return rest.Answer{}, err
	}
	refusal := bad("Invalid volume: Volume status must be available or error or error_restoring or error_extending or error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after volume transfer.")
	kept := slices.ContainsFunc(f.cloud.Snapshots(), func(s cloud.Snapshot) bool { return s.VolumeID == v.ID })
	if status := statusOf(v); kept || status != "available" && status != "error" {
		return rest.Answer{}, refusal
	}
	switch err := r.DeleteVolume(v.ID); {
	case errors.Is(err, cloud.ErrNoVolume), errors.Is(err, cloud.ErrInUse), errors.Is(err, cloud.ErrState):
		return rest.Answer{}, refusal
	case err != nil:
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusAccepted}, nil
}

// act handles an action on a volume. Only extending is simulated.
func (f *Front) act(r *rest.Request) (rest.Answer, error) {
	type extension struct {
		Size int64 `json:"new_size"`
	}
	in, err := decode[extension](r, "os-extend")
	if err != nil {
		return rest.Answer{}, err
	}
	v, err := f.now(r.HTTP.PathValue("id"))
	if err != nil {
		return rest.Answer{}, err
	}
	status := statusOf(v)
	switch {
	case status != "available" && (status != "in-use" || !microversion(r, 42)):
		return rest.Answer{}, bad("Invalid volume: Volume %s status must be '('available',)' to extend, currently %s.", v.ID, status)
	case in.Size*gib <= v.Size:
		return rest.Answer{}, bad("Invalid input received: New size for extend must be greater than current size. (current: %d, extended: %d).", v.Size/gib, in.Size)
	}
	if err := f.checkQuota(in.Size - v.Size/gib); err != nil {
		return rest.Answer{}, err
	}
	_, err = r.ModifyVolume(v.ID, func(now cloud.Volume) (cloud.Shape, error) {
		if now.Size != v.Size || statusOf(now) != status {
			return cloud.Shape{}, bad("Invalid volume: Volume %s status must be '('available',)' to extend, currently %s.", v.ID, statusOf(now))
		}
		shape := now.Shape()
		shape.Size = in.Size * gib
		return shape, nil
	})
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusAccepted}, nil
}

func (f *Front) addMetadata(r *rest.Request) (rest.Answer, error) {
	in, err := decode[map[string]string](r, "metadata")
	if err != nil {
		return rest.Answer{}, err
	}
	if err := checkMetadata(in); err != nil {
		return rest.Answer{}, err
	}
	return f.edit(r, func(metadata map[string]string) error { maps.Copy(metadata, in); return nil })
}

func (f *Front) dropMetadata(r *rest.Request) (rest.Answer, error) {
	key := r.HTTP.PathValue("key")
	_, err := f.edit(r, func(metadata map[string]string) error {
		if _, there := metadata[key]; !there {
			return missing("Volume %s has no metadata with key %s.", r.HTTP.PathValue("id"), key)
		}
		delete(metadata, key)
		return nil
	})
	return rest.Answer{Status: http.StatusOK}, err
}

func (f *Front) edit(r *rest.Request, change func(metadata map[string]string) error) (rest.Answer, error) {
	v, err := f.now(r.HTTP.PathValue("id"))
	if err != nil {
		return rest.Answer{}, err
	}
	var after map[string]string
	_, err = r.EditTags([]string{v.ID}, func(_ string, tags map[string]string) error {
		err := change(tags)
		after = metadataOf(tags)
		return err
	})
	if err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"metadata": after}}, nil
}
