package hetzner

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// The labels by which a volume is ours, each perhaps in pieces (package labels), since a value has up to 63 letters, digits and
// some signs. The request that makes a volume sets them all, and a change of them replaces all at once, so that there are no
// half-marked volumes.
const (
	prefix       = "blockvol."
	labelCluster = "cluster"          // CLUSTER
	labelName    = "name"             // Docker's name, exact
	labelKey     = "key"              // what volumes are looked up by: nameOf
	labelFormer  = "former-"          // followed by cluster or name: whose a forgotten volume was
	recordPrefix = prefix + "record." // followed by the entry's key
	keyLabel     = prefix + labelKey  // as selectors have it
	mostLabel    = 63                 // characters of a value
	mostName     = mostLabel          // of a volume's own name there may be 64, but so it is a label's value too
	reserved     = "hetzner.cloud/"   // keys of Hetzner's own
)

// nameOf returns the name at Hetzner of the volume of that name, as the console shows it. It is also what volumes are looked up by.
// Names are unique in a project, and this one is different for each cluster and name: so one name has one volume.
func (p *Provider) nameOf(name string) string { return labels.Name(p.cluster, name, mostName) }

// marks is what the labels say about a volume.
type marks struct {
	cluster, name, key string
	former             managed.Former
	owned              bool // some cluster's: at least a part of one of these is there
	record             providers.Record
	unreadable         []string // labels, as they begin
}

func read(from map[string]string) marks {
	texts, broken := labels.Unpack(cut(from, prefix))
	record, lost := labels.Unpack(cut(from, recordPrefix))
	b := marks{cluster: texts[labelCluster], name: texts[labelName], key: texts[labelKey], record: record}
	b.former = managed.Former{Cluster: texts[labelFormer+labelCluster], Name: texts[labelFormer+labelName]}
	for _, mark := range []string{labelCluster, labelName, labelKey} {
		_, there := texts[mark]
		unreadable := slices.Contains(broken, mark)
		b.owned = b.owned || there || unreadable
		if unreadable {
			b.unreadable = append(b.unreadable, prefix+mark)
		}
	}
	for _, entry := range lost {
		b.unreadable = append(b.unreadable, recordPrefix+entry)
	}
	return b
}

// cut returns the labels that have the prefix, without the prefix.
func cut(from map[string]string, prefix string) map[string]string {
	found := make(map[string]string)
	for label, value := range from {
		if rest, is := strings.CutPrefix(label, prefix); is {
			found[rest] = value
		}
	}
	return found
}

// put sets texts in labels. It replaces those under the same keys, also incomplete ones.
func put(to map[string]string, prefix string, texts map[string]string) {
	for key := range texts {
		take(to, prefix, key)
	}
	for label, value := range labels.Pack(texts, mostLabel) {
		to[prefix+label] = value
	}
}

var pieces = regexp.MustCompile(`^(_[0-9]+_[0-9]+)?$`)

// take removes a text from labels.
func take(from map[string]string, prefix, key string) {
	maps.DeleteFunc(from, func(label, _ string) bool {
		rest, is := strings.CutPrefix(label, prefix+key)
		return is && pieces.MatchString(rest)
	})
}

// labelsFor returns the labels of a volume that becomes this cluster's: those that it has, and ours.
func (p *Provider) labelsFor(has map[string]string, spec providers.Spec) map[string]string {
	all := maps.Clone(has)
	if all == nil {
		all = make(map[string]string)
	}
	maps.Copy(all, spec.Tags)
	for _, mark := range []string{labelCluster, labelName} {
		take(all, prefix, labelFormer+mark)
	}
	put(all, recordPrefix, spec.Record)
	put(all, prefix, map[string]string{labelCluster: p.cluster, labelName: spec.Name, labelKey: p.nameOf(spec.Name)})
	return all
}

// ours returns the selector of this cluster's volumes.
func (p *Provider) ours() string {
	var all []string
	for label, value := range labels.Pack(map[string]string{labelCluster: p.cluster}, mostLabel) {
		all = append(all, prefix+label+"="+value)
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// damaged returns the error for a volume whose labels somebody has changed. Such a volume is not reported as missing, since it may
// hold data; nor is an entry of its record, which may say that it does.
func damaged(v *volume, unreadable []string) error {
	if len(unreadable) == 0 {
		return nil
	}
	return fmt.Errorf("the labels %s of volume %d (%s at Hetzner Cloud) cannot be read: pieces of them are missing or changed: put them back, or remove all labels that begin with %s and adopt the volume anew by -o volume-id=%d",
		strings.Join(unreadable, ", "), v.ID, sanitize.Clip(v.Name), prefix, v.ID)
}

var (
	tagPrefix = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	tagWord   = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)
)

// checkTags refuses tags that cannot be labels.
func checkTags(spec providers.Spec) error {
	tags := spec.Tags
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		before, word, prefixed := strings.Cut(key, "/")
		if !prefixed {
			before, word = "", key
		}
		shown := sanitize.Clip(key)
		switch {
		case strings.HasPrefix(key, reserved), strings.HasPrefix(key, prefix):
			return fmt.Errorf("%w: tag %q: keys that begin with %s or %s are not for operators: choose another", providers.ErrInvalid, shown, reserved, prefix)
		case prefixed && (!tagPrefix.MatchString(before) || len(before) > 253), !tagWord.MatchString(word):
			return fmt.Errorf("%w: tag %q: a key has up to 63 letters, digits, dashes, underscores and dots, and begins and ends with a letter or a digit; before it there may be a domain and a slash", providers.ErrInvalid, shown)
		case tags[key] != "" && !tagWord.MatchString(tags[key]):
			return fmt.Errorf("%w: the value of tag %q: it has up to 63 letters, digits, dashes, underscores and dots, and begins and ends with a letter or a digit", providers.ErrInvalid, shown)
		}
	}
	return nil
}

// mark stores one entry as a label.
//
// Hetzner replaces all labels at once, so they are read, changed and written. Within this process nothing comes between, see
// managed.Cloud.Locks. Another node can: of two marks made in the same moment by two nodes one may be lost without either knowing,
// and a mark may give back the name to a volume that another node forgets in that moment, which is then found as before, or
// refused as one of two that have it. The driver marks while its node holds the volume, when no other marks or forgets it, and
// of what a lost mark may be, nothing alone lets it format a disk.
func (p *Provider) mark(ctx context.Context, d managed.Disk[*volume], key, value string) error {
	all := maps.Clone(d.Native.Labels)
	put(all, recordPrefix, map[string]string{key: value})
	_, err := p.update(ctx, d.ID, "", all)
	return err
}

// update writes the labels, and the name unless it is empty, and checks that the answer shows them.
func (p *Provider) update(ctx context.Context, id, name string, marks map[string]string) (*volume, error) {
	request := "the request to label volume " + id
	answer, err := ask(ctx, p, request, http.MethodPut, volumePath(id), schema.VolumeUpdateRequest{Name: name, Labels: &marks}, isVolume(id))
	if err != nil {
		return nil, err
	}
	v := &answer.Volume
	if !maps.Equal(v.Labels, marks) || name != "" && v.Name != name {
		return nil, fmt.Errorf("%w: Hetzner Cloud has accepted %s, and shows other labels or another name in its answer", providers.ErrBusy, request)
	}
	p.saw(v, time.Now())
	return v, nil
}
