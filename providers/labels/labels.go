// Package labels stores any text in the labels or tags of clouds that allow few characters in them.
//
// A text is stored under its key. If every cloud allows it, it is stored as it is, readable for people. Otherwise it is encoded and
// split into pieces, whose keys have the number of pieces:
//
//	layout         data
//	name_2_1       8tpc7dm3jtii1pklm3j8rbn5
//	name_2_2       na9g
//
// So an incomplete text is recognized, and a plain text is never taken for an encoded one. All is in lower case, since some clouds
// ignore case.
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
	keys   = regexp.MustCompile(`^[a-z0-9-]{1,16}$`)
	simple = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	pieces = regexp.MustCompile(`^([a-z0-9-]{1,16})_([1-9][0-9]{0,2})_([1-9][0-9]{0,2})$`)
)

// encoding uses digits and lower-case letters only.
var encoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// Pack makes labels of texts. The keys of texts are words of [a-z0-9-] of up to 16 bytes; texts are any bytes, up to 255; most is 16
// or more. Labels have keys of up to 24 and values of up to most characters of [a-z0-9_-], which begin and end with a letter or a
// digit unless a text's key begins with a hyphen. The value of one label may be empty.
func Pack(texts map[string]string, most int) map[string]string {
	labels := make(map[string]string)
	for key, text := range texts {
		maps.Copy(labels, pack(key, text, most, most))
	}
	return labels
}

// pack makes labels of one text: plain is the longest text that is stored as it is, piece the length of a piece.
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

// Unpack returns the texts in labels, and the sorted keys of those that cannot be read: pieces are missing or damaged, or a key has
// two texts. Such a key is not in texts. Some pieces of another text beside a whole one, as an interrupted change leaves them, are
// ignored; so are labels whose keys Pack does not make.
func Unpack(labels map[string]string) (texts map[string]string, unreadable []string) {
	set := make(map[string][]string, len(labels))
	for key, value := range labels {
		set[key] = []string{value}
	}
	return unpack(set)
}

// unpack reads labels that may have several values.
func unpack(labels map[string][]string) (texts map[string]string, unreadable []string) {
	found := make(map[string][]string) // by key: its whole texts; empty if it has only labels that cannot be read
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

// joined returns the text whose first piece this is, if all pieces are there; none if this is another piece.
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

// PackTags is Pack for clouds whose tags have no keys. Each tag is prefix, key, colon and value, up to most characters long; tags are
// sorted. The prefix is in lower case. most must leave at least 8 characters for the value beside a key of 24.
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

// UnpackTags is Unpack for tags, in any order. It ignores case, and tags without the prefix.
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

// AddPrefix returns the texts under their keys after the prefix, for clouds that keep any text in a label.
func AddPrefix(prefix string, texts map[string]string) map[string]string {
	labels := make(map[string]string, len(texts))
	for key, text := range texts {
		labels[prefix+key] = text
	}
	return labels
}

// CutPrefix returns the texts that AddPrefix has put into labels. Other labels are ignored.
func CutPrefix(prefix string, labels map[string]string) map[string]string {
	texts := make(map[string]string)
	for label, text := range labels {
		if key, is := strings.CutPrefix(label, prefix); is {
			texts[key] = text
		}
	}
	return texts
}
