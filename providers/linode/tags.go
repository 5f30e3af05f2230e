package linode

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
)

// The marks of a volume are in its tags, a set of texts of 3 to 50 characters whose case may not matter. The reference has no limit
// for their number; a name of 255 bytes takes 12, an entry of the record of 255 bytes up to 20. A PUT replaces all at once, so they
// are never incomplete.
const (
	markPrefix   = "bv:"  // cluster, name and key
	formerPrefix = "bvf:" // cluster and name of a forgotten volume
	recordPrefix = "bvr:" // the record's entries
	leastTag     = 3
	mostTag      = 50

	textCluster = "cluster" // CLUSTER
	textName    = "name"    // Docker's name, exact
	textKey     = "key"     // for lookups: a digest of cluster and name
)

// keyOf is the lookup key of a name.
func (p *Provider) keyOf(name string) string { return labels.Digest(p.cluster, name)[:40] }

func keyTag(digest string) string { return markPrefix + textKey + ":" + digest }

// clusterTag is a tag that all volumes of the cluster have, and perhaps others: the first piece of the cluster's name.
func (p *Provider) clusterTag() string {
	return labels.PackTags(markPrefix, map[string]string{textCluster: p.cluster}, mostTag)[0]
}

// marks are the tags that make a volume this cluster's under that name.
func (p *Provider) marks(name string) []string {
	return labels.PackTags(markPrefix, map[string]string{textCluster: p.cluster, textName: name, textKey: p.keyOf(name)}, mostTag)
}

func recordTags(rec providers.Record) []string { return labels.PackTags(recordPrefix, rec, mostTag) }

// identity is what the tags say about the owner of a volume.
type identity struct {
	cluster, name string // empty unless the marks are whole
	marked        bool   // it has at least some of a cluster's marks
	whole         bool   // its marks can be read, and belong together
}

func (p *Provider) identity(tags []string) identity {
	texts, unreadable := labels.UnpackTags(markPrefix, tags)
	cluster, name := texts[textCluster], texts[textName]
	marked := len(texts)+len(unreadable) > 0
	if len(unreadable) > 0 || len(texts) != 3 || cluster == p.cluster && texts[textKey] != p.keyOf(name) {
		return identity{marked: marked}
	}
	return identity{cluster, name, marked, true}
}

// recordOf reads the record from the tags.
func recordOf(tags []string) (providers.Record, error) {
	rec, unreadable := labels.UnpackTags(recordPrefix, tags)
	if len(unreadable) > 0 {
		return nil, fmt.Errorf("the tags of its record (%s%s…) have been changed by somebody and cannot be read", recordPrefix, unreadable[0])
	}
	return rec, nil
}

// without returns the tags that do not begin with the prefix.
func without(tags []string, prefix string) []string {
	return slices.DeleteFunc(slices.Clone(tags), func(tag string) bool { return strings.HasPrefix(strings.ToLower(tag), prefix) })
}

// sameTags compares two sets of tags, whatever their order and case.
func sameTags(a, b []string) bool {
	set := func(tags []string) []string {
		lower := make([]string, len(tags))
		for i, tag := range tags {
			lower[i] = strings.ToLower(tag)
		}
		slices.Sort(lower)
		return slices.Compact(lower)
	}
	return slices.Equal(set(a), set(b))
}

func checkTags(spec providers.Spec) error {
	_, err := operatorTags(spec.Tags)
	return err
}

// operatorTags returns the operator's own tags: "key:value", or the key alone.
func operatorTags(tags map[string]string) ([]string, error) {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		tag := key
		if tags[key] != "" {
			tag += ":" + tags[key]
		}
		switch n := utf8.RuneCountInString(tag); {
		case n < leastTag || n > mostTag:
			return nil, fmt.Errorf("%w: tag %q: with its value it has %d characters, and a tag of Linode has %d to %d", providers.ErrInvalid, key, n, leastTag, mostTag)
		case len(without(without(without([]string{tag}, markPrefix), recordPrefix), formerPrefix)) == 0:
			return nil, fmt.Errorf("%w: tag %q: tags that begin with %s, %s or %s are not for operators: choose another", providers.ErrInvalid, key, markPrefix, recordPrefix, formerPrefix)
		case slices.ContainsFunc(list, func(t string) bool { return strings.EqualFold(t, tag) }):
			return nil, fmt.Errorf("%w: tag %q is there twice, as Linode does not tell upper case from lower", providers.ErrInvalid, key)
		}
		list = append(list, tag)
	}
	return list, nil
}

// label returns the label of the volume of that name, which is also its device's serial. A forgotten disk, or one that is being
// deleted, may have the label of the first turn; then every node tries that of the next turn.
func (p *Provider) label(name string, turn int) string {
	return labels.NameAt(turn, p.cluster, name, mostLabel)
}

const mostLabel = 32
