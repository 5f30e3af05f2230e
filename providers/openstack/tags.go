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

// The metadata by which a volume is ours. Cinder takes any text of up to 255 characters for a value; a key is of
// [a-zA-Z0-9-_:. ]. Each entry is written by itself: of two that are written at once none is lost.
const (
	prefix     = "blockvol:"
	keyCluster = prefix + "cluster" // CLUSTER
	keyName    = prefix + "name"    // Docker's name, exact
	keyDigest  = prefix + "key"     // of cluster and name: what volumes are looked up by, as filters do not tell A from a
	keyState   = prefix + "state"   // one of the states below
	keyMaker   = prefix + "maker"   // the process that made it, or adopted
	keyRetired = prefix + "retired" // the cluster whose volume it was until it was deleted, and had snapshots
	keyOrigin  = prefix + "origin"  // on a snapshot: a digest of what it was asked to be
	keyRecord  = prefix + "record:" // followed by the entry's key
)

// The states of a volume, see create.go.
const (
	stateNew       = "new"       // a candidate of an older blockvol
	stateClaimed   = "claimed"   // a candidate for its name
	stateWithdrawn = "withdrawn" // a candidate that its maker deletes once Cinder has made it
	stateSettled   = "settled"   // the volume of that name
	stateForgotten = "forgotten" // nobody's
	stateRetired   = "retired"   // to be deleted when its snapshots are
)

// adopted is the maker of a volume that existed before.
const adopted = "adopted"

func (p *Provider) keyOf(name string) string { return labels.Digest(p.cluster, name) }

// Databases of many clouds hold no characters beyond the first 65536. Those stand as two of the area for private use, by ten
// bits each, and what is of this area itself, as two others, so that a text never grows beyond as many characters as it has bytes.
const (
	privateHigh   = 0xE000 // to 0xE3FF: the first half of a character
	privateLow    = 0xE400 // to 0xE7FF: the second half
	privateEscape = 0xE800 // to 0xE802: the first half of one that is private itself
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

// recordOf takes the record out of the metadata.
func recordOf(metadata map[string]string) providers.Record {
	rec := providers.Record{}
	for key, value := range metadata {
		if entry, is := strings.CutPrefix(key, keyRecord); is {
			rec[entry] = decode(value)
		}
	}
	return rec
}

func recordMarks(rec providers.Record) map[string]string {
	marks := make(map[string]string, len(rec))
	for key, value := range rec {
		marks[keyRecord+key] = encode(value)
	}
	return marks
}

// marks are the metadata that make a volume this cluster's under that name, but for its state.
func (p *Provider) marks(spec providers.Spec) map[string]string {
	marks := maps.Clone(spec.Tags)
	if marks == nil {
		marks = make(map[string]string)
	}
	maps.Copy(marks, recordMarks(spec.Record))
	marks[keyCluster], marks[keyName], marks[keyDigest] = encode(p.cluster), encode(spec.Name), p.keyOf(spec.Name)
	return marks
}

// unnamed are the metadata of a volume that is nobody's.
func unnamed(state string) map[string]string {
	return map[string]string{keyState: state, keyCluster: "", keyName: "", keyDigest: ""}
}

// isNamed tells whether the metadata give a name of this cluster; the state says what that is worth.
func (p *Provider) isNamed(metadata map[string]string) bool {
	name := decode(metadata[keyName])
	return name != "" && decode(metadata[keyCluster]) == p.cluster && metadata[keyDigest] == p.keyOf(name)
}

// isOurs tells whether the metadata are those of a volume of this cluster.
func (p *Provider) isOurs(metadata map[string]string) bool {
	return p.isNamed(metadata) && metadata[keyState] == stateSettled
}

// isCandidate tells whether the metadata are those of a volume that is being made for this cluster, by a process that lives or
// by one that does not.
func (p *Provider) isCandidate(metadata map[string]string) bool {
	return p.isNamed(metadata) && slices.Contains([]string{stateNew, stateClaimed, stateWithdrawn}, metadata[keyState])
}

// checkSpec refuses what Cinder would, before anything is made.
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
			return fmt.Errorf("%w: tag %q: keys that begin with %s are not for operators: choose another", providers.ErrInvalid, key, prefix)
		case !tagKey.MatchString(key):
			return fmt.Errorf("%w: the key of tag %q: Cinder's have 1 to 255 letters, digits, blanks, or any of - _ : and the full stop", providers.ErrInvalid, key)
		case utf8.RuneCountInString(value) > 255 || !utf8.ValidString(value):
			return fmt.Errorf("%w: the value of tag %q: Cinder's have up to 255 characters of UTF-8", providers.ErrInvalid, key)
		case strings.ContainsFunc(value, func(c rune) bool { return c > 0xFFFF }):
			return fmt.Errorf("%w: the value of tag %q has characters beyond U+FFFF, which the databases of many clouds do not hold", providers.ErrInvalid, key)
		}
	}
	return nil
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
