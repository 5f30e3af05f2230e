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
	"github.com/gophercloud/gophercloud/v2/pagination"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
)

const (
	gib     = providers.GiB
	perPage = 1000 // the most that Cinder gives at once, unless it is configured otherwise
)

// sizes go as far as Cinder counts.
var sizes = providers.Sizes{Cloud: "Cinder", Least: 1, Most: 1<<31 - 1}

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func isUUID(id string) bool { return uuidPattern.MatchString(id) }

// volume is Cinder's description of a volume, and the cloud's time when it gave it in a list, zero if it did not tell.
type volume struct {
	volumes.Volume
	told time.Time
}

// maxNames is how many names one call is for; with more than one it is a list of the whole cluster.
const maxNames = 1000

// named looks in the whole region, whatever the zone.
func (p *Provider) named(ctx context.Context, names []string) (map[string][]volume, error) {
	by := map[string]string{keyDigest: p.keyOf(names[0])}
	if len(names) > 1 {
		by = map[string]string{keyCluster: encode(p.cluster)}
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
	return p.list(ctx, map[string]string{keyCluster: encode(p.cluster)})
}

// list returns the volumes with such metadata that are not being deleted. Clouds may be set to ignore the filter, and do not tell
// case, so what comes is looked at again.
func (p *Provider) list(ctx context.Context, metadata map[string]string) (all []volume, err error) {
	query := fmt.Sprintf("limit=%d&metadata=%s", perPage, pythonDict(metadata))
	some, now, err := paged(ctx, p, "the request for the list of volumes", query, func(s *session, query listOptions) pagination.Pager {
		return volumes.List(s.volume, query)
	}, func(page pagination.Page) (some []volumes.Volume, last string, header http.Header, err error) {
		some, err = volumes.ExtractVolumes(page)
		if len(some) > 0 {
			last = some[len(some)-1].ID
		}
		some = slices.DeleteFunc(some, func(v volumes.Volume) bool {
			for key, value := range metadata {
				if v.Metadata[key] != value {
					return true
				}
			}
			return !exists(v)
		})
		return some, last, page.(volumes.VolumePage).Header, err //nolint:forcetypeassert // the pager's own
	})
	for _, v := range some {
		all = append(all, volume{v, now})
	}
	return all, err
}

// paged collects the pages of a list, and the cloud's time of the last. Of a link to the next page no more is taken than that
// there is one: behind proxies it often leads elsewhere.
func paged[T any](ctx context.Context, p *Provider, action, query string, pager func(*session, listOptions) pagination.Pager, extract func(pagination.Page) (some []T, last string, header http.Header, err error)) (all []T, now time.Time, err error) {
	for marker := ""; ; {
		more := ""
		_, err := call(ctx, p, action, func(ctx context.Context, s *session) (done, error) {
			asked := listOptions("?" + query)
			if marker != "" {
				asked += listOptions("&marker=" + url.QueryEscape(marker))
			}
			return done{}, pager(s, asked).EachPage(ctx, func(_ context.Context, page pagination.Page) (bool, error) {
				some, last, header, err := extract(page)
				if err != nil {
					return false, err
				}
				next, err := page.NextPageURL()
				if next != "" {
					more = last
				}
				now, _ = http.ParseTime(header.Get("Date"))
				all = append(all, some...)
				return false, err
			})
		})
		if err != nil || more == "" || more == marker {
			return all, now, err
		}
		marker = more
	}
}

// listOptions are the query of a list, in gophercloud's shape. It writes filters without escaping quotes itself.
type listOptions string

func (q listOptions) ToVolumeListQuery() (string, error)     { return string(q), nil }
func (q listOptions) ToSnapshotListQuery() (string, error)   { return string(q), nil }
func (q listOptions) ToAttachmentListQuery() (string, error) { return string(q), nil }

// exists tells whether Cinder still has the disk.
func exists(v volumes.Volume) bool { return v.Status != "deleting" && v.Status != "deleted" }

// broken is the error for a volume that Cinder has failed at. It is not called absent, since it may have held data.
func broken(v volumes.Volume) error {
	if !strings.HasPrefix(v.Status, "error") || len(v.Attachments) > 0 {
		return nil
	}
	return fmt.Errorf("Cinder calls volume %s %q: if it has just been created, Cinder could not make it, and the cloud's operator knows why; otherwise look after its disk with the operator: if there is nothing to be saved, remove it with openstack volume delete %s", v.ID, sanitize.Clip(v.Status), v.ID) //nolint:staticcheck // a name
}

// show puts Cinder's description into the contract's words.
func (p *Provider) show(v volume) managed.Disk[volume] {
	d := managed.Disk[volume]{
		Volume: providers.Volume{
			ID: v.ID, Size: int64(v.Size) * gib, CreatedAt: v.CreatedAt.UTC(), Serial: v.ID, Snapshot: v.SnapshotID, Record: recordOf(v.Metadata),
			Details: map[string]string{"type": v.VolumeType, "zone": v.AvailabilityZone, "encrypted": strconv.FormatBool(v.Encrypted)},
		},
		Cluster: decode(v.Metadata[keyCluster]), Creating: isBeingMade(v.Volume), Resizing: v.Status == "extending", Native: v,
	}
	d.Marked = d.Cluster != ""
	switch {
	case p.isOurs(v.Metadata):
		d.Name, d.Damaged = decode(v.Metadata[keyName]), broken(v.Volume)
	case d.Cluster != p.cluster:
		d.Name = decode(v.Metadata[keyName])
	}
	if v.Status != "available" {
		d.Unready = v.Status
	}
	return d
}

// settled asks only for a volume that is on its way to a server.
func (p *Provider) settled(ctx context.Context, d managed.Disk[volume]) (managed.Disk[volume], error) {
	var err error
	d.Attachment, err = p.attachmentOf(ctx, d.Native.Volume)
	return d, err
}

// attachmentOf tells who holds the volume. Cinder shows that when a server has it, and not yet while it is on its way.
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
	case len(v.Attachments) == 0 && v.Status == "in-use": // which server, Cinder does not say
	case len(v.Attachments) == 0:
		return providers.Attachment{}, nil
	case strings.HasPrefix(v.Status, "error"):
		held.State, held.Problem = providers.AttachFailed, fmt.Sprintf("Cinder calls the volume %q", sanitize.Clip(v.Status))
	}
	if held.Node != "" {
		return held, nil
	}
	var err error
	held.Node, err = p.goingTo(ctx, v.ID)
	return held, err
}

// goingTo asks Cinder to which server a volume is on its way; "" if the cloud does not tell.
func (p *Provider) goingTo(ctx context.Context, id string) (server string, err error) {
	all, _, err := paged(ctx, p, "the question where volume "+id+" is going", "volume_id="+id, func(s *session, query listOptions) pagination.Pager {
		return attachments.List(s.with(withAttachments), query)
	}, func(page pagination.Page) (some []attachments.Attachment, last string, header http.Header, err error) {
		some, err = attachments.ExtractAttachments(page)
		return some, "", nil, err
	})
	if refused(err, http.StatusNotFound, http.StatusNotAcceptable, http.StatusForbidden) { // an old cloud, or one that keeps it to itself
		return "", nil
	}
	for _, a := range all {
		if a.VolumeID == id && a.Instance != "" && a.Status != "detached" {
			return a.Instance, err
		}
	}
	return "", err
}

// get asks for a volume by its id, whoever it belongs to.
func (p *Provider) get(ctx context.Context, id string) (volume, error) {
	v, err := call(ctx, p, "the question about volume "+id, func(ctx context.Context, s *session) (*volumes.Volume, error) {
		return volumes.Get(ctx, s.volume, id).Extract()
	})
	switch {
	case refused(err, http.StatusNotFound) && !missing(err, id):
		return volume{}, unknown("volume", id, err)
	case err != nil:
		return volume{}, err
	case v.ID != id:
		return volume{}, fmt.Errorf("%w: Cinder was asked about volume %s and answers about %q", providers.ErrUnavailable, id, sanitize.Clip(v.ID))
	case !exists(*v):
		return volume{}, fmt.Errorf("%w: volume %s is being deleted", providers.ErrNotFound, id)
	}
	return volume{Volume: *v}, nil
}

// mark stores one entry as one of the metadata.
func (p *Provider) mark(ctx context.Context, d managed.Disk[volume], key, value string) error {
	return p.write(ctx, d.ID, recordMarks(providers.Record{key: value}))
}

// write sets metadata of a volume, and leaves the others as they are.
func (p *Provider) write(ctx context.Context, id string, marks map[string]string) error {
	_, err := call(ctx, p, "the metadata for volume "+id, func(ctx context.Context, s *session) (done, error) {
		var answer struct {
			Metadata map[string]string `json:"metadata"`
		}
		_, err := s.volume.Post(ctx, s.volume.ServiceURL("volumes", id, "metadata"), map[string]any{"metadata": marks}, &answer, &gophercloud.RequestOpts{OkCodes: []int{http.StatusOK}}) //nolint:bodyclose // it closes it itself, as it decodes it
		return done{}, err
	})
	if refused(err, http.StatusBadRequest) {
		return fmt.Errorf("%w: %w", providers.ErrBusy, err) // it is under maintenance, or being uploaded
	}
	return err
}

// claim gives an existing volume the metadata of one of ours.
func (p *Provider) claim(ctx context.Context, d managed.Disk[volume], spec providers.Spec) (volume, error) {
	marks, again := p.marks(spec), p.IsOurs(d)
	if !again {
		if d.Native.Multiattach {
			return volume{}, severalServers(d.ID)
		}
		marks[keyState], marks[keyMaker] = stateSettled, adopted
	}
	if err := p.write(ctx, d.ID, marks); err != nil {
		return volume{}, err
	}
	if !again {
		if err := p.yield(ctx, d, spec.Name); err != nil {
			return volume{}, err
		}
	}
	return p.get(ctx, d.ID)
}

// yield takes the name off again from a volume that was just adopted, if another got it at the same moment: one that was
// created, or one adopted whose id is lower.
func (p *Provider) yield(ctx context.Context, d managed.Disk[volume], name string) error {
	if err := pace.Pause(ctx, p.times.lag); err != nil {
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
			return fmt.Errorf("%w: %s cannot be %q: volume %s got that name at the same moment", providers.ErrInvalid, d.ID, name, other.ID)
		}
	}
	return nil
}

func (p *Provider) release(ctx context.Context, d managed.Disk[volume]) error {
	return p.write(ctx, d.ID, unnamed(stateForgotten))
}

// remove destroys the volume, and orphans of its name before, see the package's comment. Cinder keeps one that has snapshots: if
// they are blockvol's, the volume loses its name, and DeleteSnapshot deletes it with the last of them.
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

// destroy asks for a volume to be deleted. One that is not there is success.
func (p *Provider) destroy(ctx context.Context, id string) error {
	_, err := call(ctx, p, "the deletion of volume "+id, func(ctx context.Context, s *session) (done, error) {
		return done{}, volumes.Delete(ctx, s.volume, id, nil).ExtractErr()
	})
	if missing(err, id) {
		return nil
	}
	return err
}

// whyNotDeleted finds out what Cinder's refusal means, and retires a volume that is kept by snapshots of ours.
func (p *Provider) whyNotDeleted(ctx context.Context, id string, refusal error) error {
	d, err := p.GetOurs(ctx, id)
	if err == nil {
		d, err = p.settled(ctx, d)
	}
	if err != nil {
		return err
	}
	v, held := d.Native, d.Attachment
	if held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	kept, err := p.snapshotsOf(ctx, id)
	if err != nil {
		return err
	}
	if len(kept) == 0 {
		return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, id, sanitize.Clip(v.Status), refusal)
	}
	for _, s := range kept {
		if s.Metadata[keyCluster] != encode(p.cluster) {
			return fmt.Errorf("Cinder does not delete volume %s while it has snapshots, and %s is not blockvol's: delete that first, or remove the volume with reclaim=retain", id, s.ID) //nolint:staticcheck // a name
		}
	}
	marks := unnamed(stateRetired)
	marks[keyRetired] = encode(p.cluster)
	return p.write(ctx, id, marks)
}

// pythonDict writes a filter by metadata, which is a dictionary as Python has it, escaped for a query.
func pythonDict(metadata map[string]string) string {
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\x00", `\x00`)
	pairs := make([]string, 0, len(metadata))
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		pairs = append(pairs, "'"+quoted.Replace(key)+"':'"+quoted.Replace(metadata[key])+"'")
	}
	return url.QueryEscape("{" + strings.Join(pairs, ",") + "}")
}
