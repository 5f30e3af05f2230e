package digitalocean

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/managed"
)

// Only the tags of a volume can be changed. They are words of letters, digits, colons, dashes and underscores; case does not matter.
// They belong to the account, and stay there when no volume has them any more. So there are as few as possible, and the next volume
// uses the same ones.
//
//	blockvol:cluster:main                 its cluster; without it, no cluster's
//	blockvol:name:db                      Docker's name
//	blockvol:former:main                  on a forgotten disk: the cluster that it was of; the name stays
//	blockvol:snapshot:…                   the snapshot it was made from
//	blockvol:size:20                      the GiB asked for, if it was made from a smaller snapshot
//	blockvol-record:0:layout:data         an entry of the record, as the volume was made
//	blockvol-record:3-9f2a:layout:root    the same, changed for the third time
//
// A change adds the entry with the next number and then removes those before it, so that a process may die at any moment: the highest
// number whose tags are complete counts. Two nodes that make a change at the same moment use the same number; then the digest of the
// entry, which follows the number, decides, for all nodes alike.
const (
	tagPrefix    = "blockvol:"
	recordPrefix = "blockvol-record:"

	textCluster, textFormer, textName, textSnapshot, textSize = "cluster", "former", "name", "snapshot", "size"

	maxTag  = 255 // characters
	maxText = 255 // bytes of a text that package labels keeps
)

// identity is what the tags say about the owner of a volume or a snapshot.
type identity struct {
	cluster, former, name, snapshot string
	size                            int64    // GiB
	unreadable                      []string // keys
}

func identityOf(tags []string) identity {
	texts, unreadable := labels.UnpackTags(tagPrefix, tags)
	size, _ := strconv.ParseInt(texts[textSize], 10, 64) // blockvol's own number, or none
	return identity{texts[textCluster], texts[textFormer], texts[textName], texts[textSnapshot], size, unreadable}
}

// owned reports whether it is some cluster's.
func (i identity) owned() bool { return i.cluster != "" || slices.Contains(i.unreadable, textCluster) }

// textTags returns the tags of a text.
func textTags(key, text string) []string {
	return labels.PackTags(tagPrefix, map[string]string{key: text}, maxTag)
}

// textOf returns the key of the text that a tag is a part of, "" if there is none.
func textOf(tag string) string {
	rest, is := strings.CutPrefix(strings.ToLower(tag), tagPrefix)
	label, _, whole := strings.Cut(rest, ":")
	if !is || !whole {
		return ""
	}
	key, _, _ := strings.Cut(label, "_")
	return key
}

// turn is the number of a change of an entry, and the digest of the entry.
type turn struct {
	n      int
	digest string
}

func (t turn) String() string {
	if t.n == 0 {
		return "0"
	}
	return strconv.Itoa(t.n) + "-" + t.digest
}

func (t turn) before(other turn) bool {
	return t.n < other.n || t.n == other.n && t.digest < other.digest
}

var entryTag = regexp.MustCompile(`^` + recordPrefix + `(0|([1-9][0-9]{0,8})-([0-9a-f]{4})):([a-z0-9-]{1,16})(_[0-9]+_[0-9]+)?:`)

// entryOf returns the key and the turn of the entry of the record that a tag is a part of.
func entryOf(tag string) (key string, t turn, is bool) {
	parts := entryTag.FindStringSubmatch(strings.ToLower(tag))
	if parts == nil {
		return "", turn{}, false
	}
	n, _ := strconv.Atoi(parts[2]) // "" is 0
	return parts[4], turn{n, parts[3]}, true
}

// recordOf reads the record: of each entry the last turn whose tags are complete.
func recordOf(tags []string) providers.Record {
	turns := make(map[string][]turn)
	for _, tag := range tags {
		if key, t, is := entryOf(tag); is && !slices.Contains(turns[key], t) {
			turns[key] = append(turns[key], t)
		}
	}
	rec, held := providers.Record{}, map[string]turn{}
	for key, all := range turns {
		for _, t := range all {
			texts, _ := labels.UnpackTags(recordPrefix+t.String()+":", tags)
			if value, whole := texts[key]; whole && !t.before(held[key]) {
				rec[key], held[key] = value, t
			}
		}
	}
	return rec
}

// recordTags returns the tags of a new record.
func recordTags(rec providers.Record) []string {
	return labels.PackTags(recordPrefix+turn{}.String()+":", rec, maxTag)
}

// change returns the tags to add for an entry's new value, and those to remove afterwards.
func change(tags []string, key, value string) (add, remove []string) {
	if now, is := recordOf(tags)[key]; is && now == value {
		return nil, nil
	}
	last := -1
	for _, tag := range tags {
		if k, t, is := entryOf(tag); is && k == key {
			last = max(last, t.n)
			remove = append(remove, tag)
		}
	}
	next := turn{n: last + 1}
	if next.n > 0 {
		sum := sha256.Sum256([]byte(key + "=" + value))
		next.digest = hex.EncodeToString(sum[:2])
	}
	return labels.PackTags(recordPrefix+next.String()+":", map[string]string{key: value}, maxTag), remove
}

// operatorTags returns the operator's own tags: key:value, or the key alone.
func operatorTags(tags map[string]string) []string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		tag := key
		if tags[key] != "" {
			tag += ":" + tags[key]
		}
		all = append(all, tag)
	}
	return all
}

var tagWord = regexp.MustCompile(`^[a-zA-Z0-9_:-]{1,255}$`)

// ownTags is the reverse of operatorTags, for all tags that are not blockvol's.
func ownTags(v godo.Volume) map[string]string {
	tags := make(map[string]string)
	for _, tag := range v.Tags {
		if isOwnTag(tag) {
			continue
		}
		key, value, _ := strings.Cut(tag, ":")
		if other, twice := tags[key]; twice && other != value { // the keys of tags are the operator's idea alone
			key, value = tag, ""
		}
		tags[key] = value
	}
	return tags
}

func isOwnTag(tag string) bool {
	tag = strings.ToLower(tag)
	return strings.HasPrefix(tag, tagPrefix) || strings.HasPrefix(tag, recordPrefix)
}

func checkTags(spec providers.Spec) error {
	for _, tag := range operatorTags(spec.Tags) {
		switch {
		case isOwnTag(tag):
			return fmt.Errorf("%w: tag %q: those that begin with %s or %s are blockvol's: choose another", providers.ErrInvalid, tag, tagPrefix, recordPrefix)
		case !tagWord.MatchString(tag):
			return fmt.Errorf("%w: tag %q: with its value it has 1 to 255 letters, digits, colons, dashes and underscores on DigitalOcean", providers.ErrInvalid, tag)
		}
	}
	return nil
}

// tag adds tags to a volume, one after another.
func (p *Provider) tag(ctx context.Context, id string, tags []string) error {
	for _, tag := range tags {
		err := p.tagOnce(ctx, id, tag)
		if isMissing(err) { // the tag, which is new in the account, or the volume
			var made *godo.Tag
			made, _, err = p.api.Tags.Create(ctx, &godo.TagCreateRequest{Name: tag})
			if err = p.explain(ctx, "the request to make tag "+tag, err, made != nil && made.Name != ""); err == nil || isConflict(err) {
				err = p.tagOnce(ctx, id, tag)
			}
		}
		if isMissing(err) {
			if _, there := p.get(ctx, id); there != nil {
				return there
			}
			return inOtherCapitals(tag, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func inOtherCapitals(tag string, err error) error {
	return fmt.Errorf("DigitalOcean has tag %q in other capitals, in which it cannot be given: delete that tag: %w", tag, err)
}

func (p *Provider) tagOnce(ctx context.Context, id, tag string) error {
	answer, err := p.api.Tags.TagResources(ctx, tag, &godo.TagResourcesRequest{Resources: []godo.Resource{{ID: id, Type: godo.VolumeResourceType}}})
	return p.done(ctx, fmt.Sprintf("the request to give volume %s tag %s", id, tag), answer, err)
}

// untag removes tags from a volume, one after another. Tags that it does not have are ignored.
func (p *Provider) untag(ctx context.Context, id string, tags []string) error {
	for _, tag := range tags {
		answer, err := p.api.Tags.UntagResources(ctx, tag, &godo.UntagResourcesRequest{Resources: []godo.Resource{{ID: id, Type: godo.VolumeResourceType}}})
		if err := p.done(ctx, fmt.Sprintf("the request to take tag %s from volume %s", tag, id), answer, err); err != nil && !isMissing(err) {
			return err
		}
	}
	return nil
}

// mark adds the entry's new tags, and then removes the old ones.
func (p *Provider) mark(ctx context.Context, d managed.Disk[godo.Volume], key, value string) error {
	add, remove := change(d.Native.Tags, key, value)
	if err := p.tag(ctx, d.ID, add); err != nil {
		return err
	}
	return p.untag(ctx, d.ID, remove)
}
