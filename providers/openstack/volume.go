package openstack

import (
	"cmp"
	"context"
	"errors"
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
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/quote"
	"github.com/blockvol/blockvol/providers/recent"
)

const (
	gib     = 1 << 30
	perPage = 1000 // the most that Cinder gives at once, unless it is configured otherwise
)

// sizes go as far as Cinder counts.
var sizes = providers.Sizes{Cloud: "Cinder", Least: 1, Most: 1<<31 - 1}

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func isUUID(id string) bool { return uuidPattern.MatchString(id) }

// listing is what bears a name, and the cloud's time when it said so, zero if it did not tell.
type listing struct {
	all []volumes.Volume
	now time.Time
}

// maxNames is how many names one call is for; with more than one it is a list of the whole cluster.
const maxNames = 1000

func (p *Provider) askByName(ctx context.Context, digests []string) (map[string]listing, error) {
	by := map[string]string{keyDigest: digests[0]}
	if len(digests) > 1 {
		by = map[string]string{keyCluster: encode(p.cluster)}
	}
	all, now, err := p.list(ctx, by)
	found := make(map[string]listing)
	for _, v := range all {
		key := v.Metadata[keyDigest]
		found[key] = listing{append(found[key].all, v), now}
	}
	return found, err
}

// list returns the volumes with such metadata that are not being deleted. Clouds may be set to ignore the filter, and do not tell
// case, so what comes is looked at again.
func (p *Provider) list(ctx context.Context, metadata map[string]string) (all []volumes.Volume, now time.Time, err error) {
	query := fmt.Sprintf("limit=%d&metadata=%s", perPage, pythonDict(metadata))
	return paged(ctx, p, "the request for the list of volumes", query, func(s *session, query listOptions) pagination.Pager {
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

// Find looks in the whole region, whatever the zone.
func (p *Provider) Find(ctx context.Context, name string) (*providers.Volume, error) {
	v, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.describe(ctx, v)
}

// find is Find in Cinder's words.
func (p *Provider) find(ctx context.Context, name string) (volumes.Volume, error) {
	if name == "" {
		return volumes.Volume{}, fmt.Errorf("%w: a volume without a name", providers.ErrNotFound)
	}
	bearers, _, err := p.byName.Get(ctx, p.keyOf(name))
	if err != nil {
		return volumes.Volume{}, err
	}
	return p.settledOf(name, bearers.all)
}

// settledOf finds the volume of the name among those that bear it.
func (p *Provider) settledOf(name string, bearers []volumes.Volume) (volumes.Volume, error) {
	var settled []volumes.Volume
	for _, v := range bearers {
		if p.isOurs(v.Metadata) {
			settled = append(settled, v)
		}
	}
	v, err := providers.Bearers[volumes.Volume]{
		Cloud: "Cinder", Cluster: p.cluster, Take: "the name (openstack volume unset --property " + keyDigest + ")",
		Show: func(v volumes.Volume) string { return "volume " + v.ID },
	}.One(name, settled)
	if err == nil {
		err = broken(v)
	}
	return v, err
}

// broken is the error for a volume that Cinder has failed at. It is not called absent, since it may have held data.
func broken(v volumes.Volume) error {
	if !strings.HasPrefix(v.Status, "error") || len(v.Attachments) > 0 {
		return nil
	}
	return fmt.Errorf("Cinder calls volume %s %q: if it has just been created, Cinder could not make it, and the cloud's operator knows why; otherwise look after its disk with the operator: if there is nothing to be saved, remove it with openstack volume delete %s", v.ID, quote.Clip(v.Status), v.ID) //nolint:staticcheck // a name
}

// List returns the cluster's volumes. Those that share a name or have failed are left out, and the error names them.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	all, _, err := p.list(ctx, map[string]string{keyCluster: encode(p.cluster)})
	if err != nil {
		return nil, err
	}
	byName := make(map[string][]volumes.Volume)
	for _, v := range all {
		if name, _ := p.nameOf(v.Metadata); p.isOurs(v.Metadata) {
			byName[name] = append(byName[name], v)
		}
	}
	var list []*providers.Volume
	var problems []error
	for _, name := range sorted(byName) {
		v, err := p.settledOf(name, byName[name])
		if err != nil {
			problems = append(problems, fmt.Errorf("%q: %w", name, err))
			continue
		}
		described, err := p.describe(ctx, v)
		if err != nil {
			return nil, err
		}
		list = append(list, described)
	}
	return list, errors.Join(problems...)
}

// describe puts Cinder's description into the contract's words. It asks only for a volume that is on its way to a server.
func (p *Provider) describe(ctx context.Context, from volumes.Volume) (*providers.Volume, error) {
	held, err := p.attachmentOf(ctx, from)
	if err != nil {
		return nil, err
	}
	p.ours.See(from.ID, time.Now(), true)
	name, _ := p.nameOf(from.Metadata)
	return &providers.Volume{
		ID: from.ID, Name: name, Size: int64(from.Size) * gib, CreatedAt: from.CreatedAt.UTC(), Serial: from.ID,
		Snapshot: from.SnapshotID, Record: recordOf(from.Metadata), Attachment: held,
		Details: map[string]string{"type": from.VolumeType, "zone": from.AvailabilityZone, "encrypted": strconv.FormatBool(from.Encrypted)},
	}, nil
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
		held.State, held.Problem = providers.AttachFailed, fmt.Sprintf("Cinder calls the volume %q", quote.Clip(v.Status))
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
func (p *Provider) get(ctx context.Context, id string) (volumes.Volume, error) {
	if !isUUID(id) {
		return volumes.Volume{}, errors.Join(ctx.Err(), fmt.Errorf("%w: %q is no id of a volume, which looks like 2f1c5b9e-8d3a-4b7e-9c6d-1a2b3c4d5e6f", providers.ErrNotFound, quote.Clip(id)))
	}
	v, err := call(ctx, p, "the question about volume "+id, func(ctx context.Context, s *session) (*volumes.Volume, error) {
		return volumes.Get(ctx, s.volume, id).Extract()
	})
	switch {
	case refused(err, http.StatusNotFound) && !missing(err, id):
		return volumes.Volume{}, fmt.Errorf("%w: it is not known whether there is a volume %s: %w", providers.ErrUnavailable, id, quote.Error(strings.TrimPrefix(err.Error(), providers.ErrNotFound.Error()+": "), ctx.Err()))
	case err != nil:
		if refused(err, http.StatusNotFound) {
			p.ours.See(id, time.Now(), false)
		}
		return volumes.Volume{}, err
	case v.ID != id:
		return volumes.Volume{}, fmt.Errorf("%w: Cinder was asked about volume %s and answers about %q", providers.ErrUnavailable, id, quote.Clip(v.ID))
	case !exists(*v):
		p.ours.See(id, time.Now(), false)
		return volumes.Volume{}, fmt.Errorf("%w: volume %s is being deleted", providers.ErrNotFound, id)
	}
	return *v, nil
}

// getOurs is get for a volume of this cluster.
func (p *Provider) getOurs(ctx context.Context, id string) (volumes.Volume, error) {
	v, err := p.get(ctx, id)
	if err == nil && !p.isOurs(v.Metadata) {
		p.ours.See(id, time.Now(), false)
		return v, providers.NotOurs(id)
	}
	return v, err
}

// ensureOurs returns an error unless the volume is this cluster's. Cinder is asked only if this process does not know.
func (p *Provider) ensureOurs(ctx context.Context, id string, age time.Duration) error {
	if ours, known := p.ours.Within(age, id); known && ours {
		return ctx.Err()
	}
	_, err := p.getOurs(ctx, id)
	if err == nil {
		p.ours.See(id, time.Now(), true)
	}
	return err
}

// Mark stores one entry as one of the metadata.
func (p *Provider) Mark(ctx context.Context, id, key, value string) error {
	if err := checkRecord(providers.Record{key: value}); err != nil {
		return err
	}
	if err := p.ensureOurs(ctx, id, recent.WhileFree); err != nil {
		return err
	}
	return p.write(ctx, id, recordMarks(providers.Record{key: value}))
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

// Adopt gives an existing volume the metadata of one of ours.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(checkName(spec.Name), checkRecord(spec.Record), checkTags(spec.Tags)); err != nil {
		return nil, err
	}
	v, err := p.get(ctx, id)
	if err != nil {
		return nil, err
	}
	held, err := p.attachmentOf(ctx, v)
	if err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) (*providers.Volume, error) {
		return nil, fmt.Errorf("%w: %s %s", providers.ErrInvalid, id, fmt.Sprintf(format, args...))
	}
	name, _ := p.nameOf(v.Metadata)
	again := p.isOurs(v.Metadata) && name == spec.Name
	owner := decode(v.Metadata[keyCluster])
	switch {
	case again:
	case owner != "":
		return refuse("is volume %q of cluster %q already: remove it there with reclaim=retain first", decode(v.Metadata[keyName]), owner)
	case v.Multiattach:
		return nil, severalServers(id)
	case held.State != providers.Detached:
		return refuse("is attached to server %s: detach it first", held.Node)
	case v.Status != "available":
		return refuse("is %q: it must be available", quote.Clip(v.Status))
	}
	switch other, err := p.find(ctx, spec.Name); {
	case err == nil && other.ID != id:
		return refuse("cannot be %q: that is the name of volume %s", spec.Name, other.ID)
	case err != nil && !errors.Is(err, providers.ErrNotFound):
		return nil, err
	}
	marks := p.marks(spec)
	if !again {
		marks[keyState], marks[keyMaker] = stateSettled, adopted
	}
	if err := p.write(ctx, id, marks); err != nil {
		return nil, err
	}
	if !again {
		if err := p.yield(ctx, id, spec.Name); err != nil {
			return nil, err
		}
	}
	if v, err = p.getOurs(ctx, id); err != nil {
		return nil, err
	}
	return p.describe(ctx, v)
}

// yield takes the name off again from a volume that was just adopted, if another got it at the same moment: one that was
// created, or one adopted whose id is lower.
func (p *Provider) yield(ctx context.Context, id, name string) error {
	if err := pace.Pause(ctx, p.times.lag); err != nil {
		return err
	}
	bearers, _, err := p.byName.Get(ctx, p.keyOf(name))
	if err != nil {
		return err
	}
	for _, v := range bearers.all {
		if v.ID != id && p.isOurs(v.Metadata) && (v.Metadata[keyMaker] != adopted || v.ID < id) {
			if err := p.write(ctx, id, unnamed(stateForgotten)); err != nil {
				return err
			}
			return fmt.Errorf("%w: %s cannot be %q: volume %s got that name at the same moment", providers.ErrInvalid, id, name, v.ID)
		}
	}
	return nil
}

// Forget takes cluster and name from the metadata; the record stays.
func (p *Provider) Forget(ctx context.Context, id string) error {
	v, err := p.get(ctx, id)
	if err != nil {
		return err
	}
	switch owner := decode(v.Metadata[keyCluster]); {
	case owner == "":
		return nil
	case owner != p.cluster || p.isCandidate(v.Metadata):
		return providers.NotOurs(id)
	}
	if held, err := p.attachmentOf(ctx, v); err != nil {
		return err
	} else if held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	p.ours.See(id, time.Now(), false)
	return p.write(ctx, id, unnamed(stateForgotten))
}

// Delete destroys the volume, and orphans of its name before, see the package's comment. Cinder itself refuses one that is
// attached. It keeps one that has snapshots, too: if they are blockvol's, the volume loses its name, and DeleteSnapshot deletes
// it with the last of them.
func (p *Provider) Delete(ctx context.Context, id string) error {
	v, err := p.getOurs(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return ctx.Err()
	} else if err != nil {
		return err
	}
	if held, err := p.attachmentOf(ctx, v); err != nil {
		return err
	} else if held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	name, _ := p.nameOf(v.Metadata)
	if err := p.removeOrphans(ctx, name); err != nil {
		return err
	}
	err = p.destroy(ctx, id)
	if refused(err, http.StatusBadRequest) {
		err = p.whyNotDeleted(ctx, id, err)
	}
	if err == nil || errors.Is(err, providers.ErrNotFound) {
		p.ours.See(id, time.Now(), false)
		return nil
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
	v, err := p.getOurs(ctx, id)
	if err != nil {
		return err
	}
	held, err := p.attachmentOf(ctx, v)
	if err != nil {
		return err
	}
	if held.State != providers.Detached {
		return &providers.HeldError{Volume: id, Node: held.Node}
	}
	kept, err := p.snapshotsOf(ctx, id)
	if err != nil {
		return err
	}
	if len(kept) == 0 {
		return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, id, quote.Clip(v.Status), refusal)
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
