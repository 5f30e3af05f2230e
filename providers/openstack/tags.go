package openstack

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
)

// The metadata of a volume of ours. A value is any text of up to 255 characters, a key has characters of [a-zA-Z0-9-_:. ]. Cinder
// writes each key separately, so concurrent writes of different keys are not lost.
const (
	prefix     = "blockvol:"
	keyCluster = prefix + "cluster" // CLUSTER
	keyName    = prefix + "name"    // Docker's name, exact
	keyDigest  = prefix + "key"     // of cluster and name: volumes are found by it, since filters ignore case
	keyState   = prefix + "state"   // one of the states below
	keyMaker   = prefix + "maker"   // the process that created it, or adopted
	keyFormer  = prefix + "former-" // followed by cluster or name: whose a forgotten volume was
	keyRetired = prefix + "retired" // the cluster that deleted it while it had snapshots
	keyOrigin  = prefix + "origin"  // on a snapshot: a digest of the request for it
	keyRecord  = prefix + "record:" // followed by the entry's key
)

// The states of a volume, see the package comment.
const (
	stateNew       = "new"       // a candidate of an older version of blockvol
	stateClaimed   = "claimed"   // a candidate for its name
	stateWithdrawn = "withdrawn" // a candidate that its maker deletes when Cinder has created it
	stateSettled   = "settled"   // the volume of that name
	stateForgotten = "forgotten" // without name and cluster
	stateRetired   = "retired"   // to be deleted when its snapshots are
)

// adopted is the maker of a volume that existed before.
const adopted = "adopted"

func (p *Provider) keyOf(name string) string { return labels.Digest(p.cfg.Cluster, name) }

// Many clouds' databases cannot store characters above U+FFFF. encode replaces such a character by two of the private use area, with
// ten bits each, and one of that area itself by two others. So a text never gets more characters than it has bytes.
const (
	privateHigh   = 0xE000 // to 0xE3FF: the upper ten bits of a character
	privateLow    = 0xE400 // to 0xE7FF: the lower ten bits
	privateEscape = 0xE800 // to 0xE802: the upper bits of a character of the private use area
	privateEnd    = 0xE803
)

func encode(text string) string {
	var b strings.Builder
	for _, c := range text {
		switch {
		case c > 0xFFFF:
			b.WriteRune(privateHigh + (c-0x10000)>>10)
			b.WriteRune(privateLow + (c-0x10000)&0x3FF)
		case c >= privateHigh && c < privateEnd:
			b.WriteRune(privateEscape + (c-privateHigh)>>10)
			b.WriteRune(privateLow + (c-privateHigh)&0x3FF)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

func decode(text string) string {
	var b strings.Builder
	runes := []rune(text)
	for i := 0; i < len(runes); i++ {
		c := runes[i]
		half := i+1 < len(runes) && runes[i+1] >= privateLow && runes[i+1] < privateEscape
		switch {
		case half && c >= privateHigh && c < privateLow:
			i++
			b.WriteRune(0x10000 + (c-privateHigh)<<10 + runes[i] - privateLow)
		case half && c >= privateEscape && c < privateEnd:
			i++
			b.WriteRune(privateHigh + (c-privateEscape)<<10 + runes[i] - privateLow)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

func recordOf(metadata map[string]string) providers.Record {
	rec := labels.CutPrefix(keyRecord, metadata)
	for key, value := range rec {
		rec[key] = decode(value)
	}
	return rec
}

func recordMarks(rec providers.Record) map[string]string {
	marks := labels.AddPrefix(keyRecord, rec)
	for key, value := range marks {
		marks[key] = encode(value)
	}
	return marks
}

// marks returns the metadata of this cluster's volume of that name, without its state.
func (p *Provider) marks(spec providers.Spec) map[string]string {
	marks := maps.Clone(spec.Tags)
	if marks == nil {
		marks = make(map[string]string)
	}
	maps.Copy(marks, recordMarks(spec.Record))
	marks[keyCluster], marks[keyName], marks[keyDigest] = encode(p.cfg.Cluster), encode(spec.Name), p.keyOf(spec.Name)
	return marks
}

// unnamed returns the metadata of a volume without name and cluster.
func unnamed(state string) map[string]string {
	return map[string]string{keyState: state, keyCluster: "", keyName: "", keyDigest: ""}
}

// isNamed returns whether the metadata have a name in this cluster, in any state.
func (p *Provider) isNamed(metadata map[string]string) bool {
	name := decode(metadata[keyName])
	return name != "" && decode(metadata[keyCluster]) == p.cfg.Cluster && metadata[keyDigest] == p.keyOf(name)
}

// isOurs returns whether the metadata are those of a volume of this cluster.
func (p *Provider) isOurs(metadata map[string]string) bool {
	return p.isNamed(metadata) && metadata[keyState] == stateSettled
}

// isCandidate returns whether the metadata are those of a candidate in this cluster, whether or not its maker is alive.
func (p *Provider) isCandidate(metadata map[string]string) bool {
	return p.isNamed(metadata) && slices.Contains([]string{stateNew, stateClaimed, stateWithdrawn}, metadata[keyState])
}

// ownTags returns the metadata that are neither blockvol's nor Cinder's.
func ownTags(v volume) map[string]string {
	tags := maps.Clone(v.Metadata)
	maps.DeleteFunc(tags, func(key, _ string) bool {
		return strings.HasPrefix(strings.ToLower(key), prefix) || key == "readonly" || key == "attached_mode"
	})
	return tags
}

// checkSpec returns ErrInvalid for what Cinder would refuse later.
func checkSpec(spec providers.Spec) error {
	if !utf8.ValidString(spec.Name) {
		return fmt.Errorf("%w: the volume's name %q is not UTF-8", providers.ErrInvalid, spec.Name)
	}
	for key, value := range spec.Record {
		if !utf8.ValidString(value) {
			return fmt.Errorf("%w: entry %q of the record is not UTF-8", providers.ErrInvalid, key)
		}
	}
	return checkTags(spec.Tags)
}

var tagKey = regexp.MustCompile(`^[a-zA-Z0-9_:. -]{1,255}$`)

func checkTags(tags map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		value := tags[key]
		switch {
		case strings.HasPrefix(strings.ToLower(key), prefix):
			return fmt.Errorf("%w: tag %q: keys that begin with %s are reserved: choose another", providers.ErrInvalid, key, prefix)
		case !tagKey.MatchString(key):
			return fmt.Errorf("%w: the key of tag %q must have 1 to 255 of these characters: letters, digits, - _ : full stop and space", providers.ErrInvalid, key)
		case utf8.RuneCountInString(value) > 255 || !utf8.ValidString(value):
			return fmt.Errorf("%w: the value of tag %q must have at most 255 characters, in UTF-8", providers.ErrInvalid, key)
		case strings.ContainsFunc(value, func(c rune) bool { return c > 0xFFFF }):
			return fmt.Errorf("%w: the value of tag %q has characters above U+FFFF, which many clouds' databases cannot store", providers.ErrInvalid, key)
		}
	}
	return nil
}
