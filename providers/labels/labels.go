// Package labels keeps texts of any kind whole in the labels or tags of clouds that allow few characters in them.
//
// A text is kept under its key. One that any cloud allows stands as it is, readable for people; any other stands in pieces
// that are encoded, under keys that say how many there are:
//
//	layout         data
//	name_2_1       8tpc7dm3jtii1pklm3j8rbn5
//	name_2_2       na9g
//
// So what is incomplete is never taken for a text, and a text that stands as it is never for an encoded one. All is in lower
// case, since some clouds do not tell it from the other.
package labels

import (
	"encoding/base32"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	keys   = regexp.MustCompile(`^[a-z-]{1,16}$`)
	simple = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	pieces = regexp.MustCompile(`^([a-z-]{1,16})_([1-9][0-9]{0,2})_([1-9][0-9]{0,2})$`)
)

// encoding has letters and digits only, and none of them twice.
var encoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// Pack makes labels of texts: keys of at most 24 and values of at most so many characters of [a-z0-9_-], all of which begin
// and end with a letter or a digit, but for keys that begin with a hyphen themselves; the value of one label may be empty.
// Keys of texts are words of [a-z-] up to 16 bytes; texts are any bytes, up to 255; most is 16 or more.
func Pack(texts map[string]string, most int) map[string]string {
	labels := make(map[string]string)
	for key, text := range texts {
		maps.Copy(labels, pack(key, text, most, most))
	}
	return labels
}

// pack takes a text apart. The first size is for one that stands as it is, the second for a piece.
func pack(key, text string, plain, piece int) map[string]string {
	if simple.MatchString(text) && len(text) <= plain && !strings.HasSuffix(key, "-") {
		return map[string]string{key: text}
	}
	labels := make(map[string]string)
	code := encoding.EncodeToString([]byte(text))
	n := max(1, (len(code)+piece-1)/piece)
	for i := range n {
		labels[pieceKey(key, n, i+1)] = code[i*piece : min((i+1)*piece, len(code))]
	}
	return labels
}

func pieceKey(key string, n, i int) string { return fmt.Sprintf("%s_%d_%d", key, n, i) }

// Unpack reads the texts that labels hold, and returns the keys of those that cannot be read, sorted: pieces are missing or
// damaged, or there are two texts. Such a key is not in texts. Pieces of another text that are left over beside a whole one,
// as a change that was not finished leaves them, do not count. Labels whose keys Pack does not make are ignored.
func Unpack(labels map[string]string) (texts map[string]string, unreadable []string) {
	set := make(map[string][]string, len(labels))
	for key, value := range labels {
		set[key] = []string{value}
	}
	return unpack(set)
}

// unpack reads labels that may have several values.
func unpack(labels map[string][]string) (texts map[string]string, unreadable []string) {
	found := make(map[string][]string) // the whole texts of each key, none if there is a label of it
	for label, values := range labels {
		if keys.MatchString(label) {
			found[label] = append(found[label], slices.DeleteFunc(slices.Clone(values), func(text string) bool { return !simple.MatchString(text) })...)
		}
		parts := pieces.FindStringSubmatch(label)
		if parts == nil {
			continue
		}
		key := parts[1]
		found[key] = append(found[key], joined(labels, key, parts[2], parts[3])...)
	}
	texts = make(map[string]string)
	for key, all := range found {
		if len(all) == 1 {
			texts[key] = all[0]
		} else {
			unreadable = append(unreadable, key)
		}
	}
	slices.Sort(unreadable)
	return texts, unreadable
}

// joined is the text of which this is the first piece, if it is that and the others are there.
func joined(labels map[string][]string, key, of, piece string) []string {
	n, err := strconv.Atoi(of)
	if err != nil || piece != "1" {
		return nil
	}
	var code strings.Builder
	for i := range n {
		values := labels[pieceKey(key, n, i+1)]
		if len(values) != 1 {
			return nil
		}
		code.WriteString(values[0])
	}
	text, err := encoding.DecodeString(code.String())
	if err != nil || encoding.EncodeToString(text) != code.String() {
		return nil
	}
	return []string{string(text)}
}

// PackTags is Pack for clouds that have a set of tags and no keys: each tag is prefix, key, colon and value, of at most so many
// characters, sorted. The prefix is in lower case. At least 8 characters must be left for the value beside a key of 24.
func PackTags(prefix string, texts map[string]string, most int) []string {
	var tags []string
	for key, text := range texts {
		room := most - len(prefix) - len(key) - len(":")
		for label, value := range pack(key, text, room, room-len("_000_000")) {
			tags = append(tags, prefix+label+":"+value)
		}
	}
	slices.Sort(tags)
	return tags
}

// UnpackTags is Unpack for a set of tags, in any order. Those without the prefix are ignored. Case does not matter.
func UnpackTags(prefix string, tags []string) (texts map[string]string, unreadable []string) {
	labels := make(map[string][]string)
	for _, tag := range tags {
		ours, is := strings.CutPrefix(strings.ToLower(tag), prefix)
		key, value, whole := strings.Cut(ours, ":")
		if is && whole && !slices.Contains(labels[key], value) {
			labels[key] = append(labels[key], value)
		}
	}
	return unpack(labels)
}
