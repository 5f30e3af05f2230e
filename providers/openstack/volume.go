package openstack

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/attachments"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

const gib = providers.GiB

var sizes = providers.Sizes{Cloud: "Cinder", Least: 1, Most: 1<<31 - 1}

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func isUUID(id string) bool { return uuidPattern.MatchString(id) }

// volume is Cinder's description of a volume.
type volume struct {
	volumes.Volume
	now time.Time // when a list had the volume, by the cloud's clock; zero if unknown
}

// maxNames is the number of names in one request. With more than one it lists the whole cluster.
const maxNames = 1000

// named returns volumes of all zones.
func (p *Provider) named(ctx context.Context, names []string) (map[string][]volume, error) {
	by := map[string]string{keyDigest: p.keyOf(names[0])}
	if len(names) > 1 {
		by = map[string]string{keyCluster: encode(p.cfg.Cluster)}
	}
	byDigest := make(map[string]string, len(names))
	for _, name := range names {
		byDigest[p.keyOf(name)] = name
	}
	all, err := p.list(ctx, by)
	found := make(map[string][]volume)
	for _, v := range all {
		if name, is := byDigest[v.Metadata[keyDigest]]; is {
			found[name] = append(found[name], v)
		}
	}
	return found, err
}

func (p *Provider) all(ctx context.Context) ([]volume, error) {
	return p.list(ctx, map[string]string{keyCluster: encode(p.cfg.Cluster)})
}

// known returns the volumes with any of blockvol's metadata, for which there is no filter.
func (p *Provider) known(ctx context.Context) ([]volume, error) {
	all, err := p.list(ctx, nil)
	return slices.DeleteFunc(all, func(v volume) bool { return len(labels.CutPrefix(prefix, v.Metadata)) == 0 }), err
}

// leftover returns what a volume with the marks of a cluster is that is none of its volumes, "" if it is one.
func (p *Provider) leftover(metadata map[string]string) string {
	switch {
	case p.isCandidate(metadata):
		return "a create has not finished, or was interrupted: the next one of this name settles it"
	case metadata[keyState] == stateRetired && decode(metadata[keyRetired]) == p.cfg.Cluster:
		return "it is deleted with its last snapshot"
	}
	return ""
}

// list returns the volumes with these metadata that are not being deleted. It checks them itself, since a cloud may ignore the filter,
// or the case of the values.
func (p *Provider) list(ctx context.Context, metadata map[string]string) ([]volume, error) {
	query := url.Values{}
	if len(metadata) > 0 {
		query.Set("metadata", pythonDict(metadata))
	}
	found, now, err := list(ctx, p, "the request for the list of volumes", "", "volumes", query, func(v volumes.Volume) string { return v.ID })
	all := make([]volume, 0, len(found))
	for _, v := range found {
		matches := exists(v)
		for key, value := range metadata {
			matches = matches && v.Metadata[key] == value
		}
		if matches {
			all = append(all, volume{v, now})
		}
	}
	return all, err
}

// exists returns false for a volume that Cinder deletes or has deleted.
func exists(v volumes.Volume) bool { return v.Status != "deleting" && v.Status != "deleted" }

// failed returns an error for a volume in one of Cinder's error states. Such a volume is not called missing, since it may hold data.
func failed(v volumes.Volume) error {
	if !strings.HasPrefix(v.Status, "error") || len(v.Attachments) > 0 {
		return nil
	}
	return fmt.Errorf("Cinder calls volume %s %q: if it has just been created, Cinder could not create it, and the cloud's operator knows why; otherwise ask the operator to repair its disk: if it holds nothing of value, delete it with openstack volume delete %s", v.ID, sanitize.Clip(v.Status), v.ID) //nolint:staticcheck // a name
}

// show translates Cinder's description.
func (p *Provider) show(v volume) managed.Disk[volume] {
	d := managed.Disk[volume]{
		Volume: providers.Volume{
			ID: v.ID, Size: int64(v.Size) * gib, CreatedAt: v.CreatedAt.UTC(), Serial: v.ID, Snapshot: v.SnapshotID, Record: recordOf(v.Metadata),
			Details: map[string]string{"type": v.VolumeType, "zone": v.AvailabilityZone, "encrypted": strconv.FormatBool(v.Encrypted)},
		},
		Cluster: decode(v.Metadata[keyCluster]), Creating: isCreating(v.Volume), Resizing: v.Status == "extending", Native: v,
	}
	d.Marked, d.Leftover = d.Cluster != "", p.leftover(v.Metadata)
	switch {
	case v.Metadata[keyState] == stateForgotten:
		d.Former = managed.Former{Cluster: decode(v.Metadata[keyFormer+"cluster"]), Name: decode(v.Metadata[keyFormer+"name"])}
	case d.Leftover != "":
		d.Former = managed.Former{Cluster: p.cfg.Cluster, Name: decode(v.Metadata[keyName])}
	case p.isOurs(v.Metadata):
		d.Name, d.Damaged = decode(v.Metadata[keyName]), failed(v.Volume)
	case d.Cluster != p.cfg.Cluster:
		d.Name = decode(v.Metadata[keyName])
	}
	if v.Status != "available" {
		d.Unready = v.Status
	}
	return d
}

// withAttachment asks Cinder only about a volume that is being attached.
func (p *Provider) withAttachment(ctx context.Context, d managed.Disk[volume]) (managed.Disk[volume], error) {
	var err error
	d.Attachment, err = p.attachmentOf(ctx, d.Native.Volume)
	return d, err
}

// attachmentOf returns the attachment. Cinder's volume names the server when it is attached, and not while it is being attached.
func (p *Provider) attachmentOf(ctx context.Context, v volumes.Volume) (providers.Attachment, error) {
	held := providers.Attachment{State: providers.Attached}
	for _, a := range v.Attachments {
		held.Node = cmp.Or(held.Node, a.ServerID)
	}
	switch {
	case v.Status == "detaching", v.Status == "error_detaching":
		held.State = providers.Detaching
	case v.Status == "reserved", v.Status == "attaching":
		held.State = providers.Attaching
	case len(v.Attachments) == 0 && v.Status == "in-use": // Cinder does not name the server
	case len(v.Attachments) == 0:
		return providers.Attachment{}, nil
	case strings.HasPrefix(v.Status, "error"):
		held.State, held.Problem = providers.AttachFailed, fmt.Sprintf("Cinder calls the volume %q", sanitize.Clip(v.Status))
	}
	if held.Node != "" {
		return held, nil
	}
	var err error
	held.Node, err = p.attachingServer(ctx, v.ID)
	return held, err
}

// attachingServer asks Cinder to which server a volume is being attached; "" if the cloud does not tell.
func (p *Provider) attachingServer(ctx context.Context, id string) (server string, err error) {
	all, _, err := list(ctx, p, "the request for the attachments of volume "+id, withAttachments, "attachments", url.Values{"volume_id": {id}}, func(a attachments.Attachment) string { return a.ID })
	if refused(err, http.StatusNotFound, http.StatusNotAcceptable, http.StatusForbidden) { // an old cloud, or the role may not read them
		return "", nil
	}
	for _, a := range all {
		if a.VolumeID == id && a.Instance != "" && a.Status != "detached" {
			return a.Instance, err
		}
	}
	return "", err
}

// get returns any volume by its ID.
func (p *Provider) get(ctx context.Context, id string) (volume, error) {
	v, err := call(ctx, p, "the request for volume "+id, func(ctx context.Context, s *session) (*volumes.Volume, error) {
		return volumes.Get(ctx, s.volume, id).Extract()
	})
	switch {
	case refused(err, http.StatusNotFound) && !missing(err, id):
		return volume{}, unknown("volume", id, err)
	case err != nil:
		return volume{}, err
	case v.ID != id:
		return volume{}, fmt.Errorf("%w: Cinder was asked for volume %s and answers with %q", providers.ErrUnavailable, id, sanitize.Clip(v.ID))
	case !exists(*v):
		return volume{}, fmt.Errorf("%w: volume %s is being deleted", providers.ErrNotFound, id)
	}
	return volume{Volume: *v}, nil
}

// mark writes one entry of the Record.
func (p *Provider) mark(ctx context.Context, d managed.Disk[volume], key, value string) error {
	return p.write(ctx, d.ID, recordMarks(providers.Record{key: value}))
}

// write sets these metadata of a volume, and leaves the others unchanged.
func (p *Provider) write(ctx context.Context, id string, marks map[string]string) error {
	_, err := call(ctx, p, "the metadata for volume "+id, func(ctx context.Context, s *session) (done, error) {
		var answer struct {
			Metadata map[string]string `json:"metadata"`
		}
		_, err := s.volume.Post(ctx, s.volume.ServiceURL("volumes", id, "metadata"), map[string]any{"metadata": marks}, &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}}) //nolint:bodyclose // Post closes it
		return done{}, err
	})
	if refused(err, http.StatusBadRequest) {
		return fmt.Errorf("%w: %w", providers.ErrBusy, err) // it is in maintenance, or being uploaded
	}
	return err
}

// claim makes an existing volume ours by its metadata.
func (p *Provider) claim(ctx context.Context, d managed.Disk[volume], spec providers.Spec) (volume, error) {
	marks, again := p.marks(spec), p.IsOurs(d)
	if !again {
		if d.Native.Multiattach {
			return volume{}, multiattachError("volume " + d.ID)
		}
		marks[keyState], marks[keyMaker] = stateSettled, adopted
	}
	if err := p.write(ctx, d.ID, marks); err != nil {
		return volume{}, err
	}
	if !again {
		if err := p.releaseIfTaken(ctx, d, spec.Name); err != nil {
			return volume{}, err
		}
	}
	return p.get(ctx, d.ID)
}

// releaseIfTaken releases a volume that was just adopted, if another volume got its name at the same time: one that was created, or
// one that was adopted and has a lower ID.
func (p *Provider) releaseIfTaken(ctx context.Context, d managed.Disk[volume], name string) error {
	if err := pause.For(ctx, p.times.lag); err != nil {
		return err
	}
	all, err := p.ByName(ctx, name)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.ID != d.ID && p.IsOurs(other) && (other.Native.Metadata[keyMaker] != adopted || other.ID < d.ID) {
			if err := p.release(ctx, d); err != nil {
				return err
			}
			return fmt.Errorf("%w: %s cannot be %q: volume %s got that name at the same time", providers.ErrInvalid, d.ID, name, other.ID)
		}
	}
	return nil
}

func (p *Provider) release(ctx context.Context, d managed.Disk[volume]) error {
	marks := unnamed(stateForgotten)
	marks[keyFormer+"cluster"], marks[keyFormer+"name"] = encode(d.Former.Cluster), encode(d.Former.Name)
	return p.write(ctx, d.ID, marks)
}

// remove deletes the volume, and before it the orphans of its name, see the package comment. Cinder does not delete a volume that
// has snapshots: if they are blockvol's, the volume loses its name, and DeleteSnapshot deletes it with the last of them.
func (p *Provider) remove(ctx context.Context, d managed.Disk[volume]) error {
	if err := p.removeOrphans(ctx, d.Name); err != nil {
		return err
	}
	err := p.destroy(ctx, d.ID)
	if refused(err, http.StatusBadRequest) {
		return p.whyNotDeleted(ctx, d.ID, err)
	}
	return err
}

// destroy deletes a volume. A missing one is success.
func (p *Provider) destroy(ctx context.Context, id string) error {
	_, err := call(ctx, p, "the deletion of volume "+id, func(ctx context.Context, s *session) (done, error) {
		return done{}, volumes.Delete(ctx, s.volume, id, nil).ExtractErr()
	})
	if missing(err, id) {
		return nil
	}
	return err
}

// whyNotDeleted explains Cinder's refusal. If snapshots of ours are the reason, it retires the volume.
func (p *Provider) whyNotDeleted(ctx context.Context, id string, refusal error) error {
	d, err := p.withHolder(ctx, id)
	if err != nil {
		return err
	}
	if d.Held() {
		return &providers.HeldError{Volume: id, Node: d.Attachment.Node}
	}
	kept, err := p.snapshotsOf(ctx, id)
	if err != nil {
		return err
	}
	if len(kept) == 0 {
		return isBusy(d.Native, refusal)
	}
	for _, s := range kept {
		if s.Metadata[keyCluster] != encode(p.cfg.Cluster) {
			return fmt.Errorf("Cinder does not delete volume %s while it has snapshots, and %s is not blockvol's: delete that snapshot first, or remove the volume with reclaim=retain", id, s.ID) //nolint:staticcheck // a name
		}
	}
	marks := unnamed(stateRetired)
	marks[keyRetired] = encode(p.cfg.Cluster)
	return p.write(ctx, id, marks)
}

// pythonDict writes a dictionary in Python's syntax, which Cinder's filter for metadata expects.
func pythonDict(metadata map[string]string) string {
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\x00", `\x00`)
	pairs := make([]string, 0, len(metadata))
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		pairs = append(pairs, "'"+quoted.Replace(key)+"':'"+quoted.Replace(metadata[key])+"'")
	}
	return "{" + strings.Join(pairs, ",") + "}"
}
