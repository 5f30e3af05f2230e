package hetzner

import (
	"regexp"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/test/cloud/rest"
)

var (
	labelPrefix = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	labelWord   = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)
)

func labelKey(key string) bool {
	prefix, name, prefixed := strings.Cut(key, "/")
	if !prefixed {
		return labelWord.MatchString(key)
	}
	return labelPrefix.MatchString(prefix) && len(prefix) <= 253 && prefix != "hetzner.cloud" && labelWord.MatchString(name)
}

func labelValue(value string) bool { return value == "" || labelWord.MatchString(value) }

func checkLabels(labels map[string]string) error {
	for key, value := range labels {
		if !labelKey(key) || !labelValue(value) {
			return invalid("labels", "label '%s' has a key or a value that is not allowed", key)
		}
	}
	return nil
}

// The expressions of a label selector.
var (
	among  = regexp.MustCompile(`^\s*([^\s!=(),]+)\s+(in|notin)\s+\(([^()]*)\)\s*(?:,|$)`)
	equals = regexp.MustCompile(`^\s*([^\s!=(),]+)\s*(==|=|!=)\s*([^\s!=(),]*)\s*(?:,|$)`)
	exists = regexp.MustCompile(`^\s*(!?)\s*([^\s!=(),]+)\s*(?:,|$)`)
)

// selector parses a label selector and returns its match function.
func selector(text string) (func(map[string]string) bool, error) {
	var all []func(map[string]string) bool
	wrong := func() error { return invalid("label_selector", "'%s' is no label selector", text) }
	for rest := text; strings.TrimSpace(rest) != ""; {
		var key string
		var values []string
		var want, present, whole bool
		if m := among.FindStringSubmatch(rest); m != nil {
			key, want, rest = m[1], m[2] == "in", rest[len(m[0]):]
			for value := range strings.SplitSeq(m[3], ",") {
				values = append(values, strings.TrimSpace(value))
			}
		} else if m := equals.FindStringSubmatch(rest); m != nil {
			key, want, values, rest = m[1], m[2] != "!=", []string{m[3]}, rest[len(m[0]):]
		} else if m := exists.FindStringSubmatch(rest); m != nil {
			key, present, whole, rest = m[2], m[1] == "", true, rest[len(m[0]):]
		} else {
			return nil, wrong()
		}
		if !labelKey(key) || slices.ContainsFunc(values, func(value string) bool { return !labelValue(value) }) {
			return nil, wrong()
		}
		all = append(all, func(labels map[string]string) bool {
			value, is := labels[key]
			if whole {
				return is == present
			}
			return (is && slices.Contains(values, value)) == want
		})
	}
	return func(labels map[string]string) bool {
		return !slices.ContainsFunc(all, func(match func(map[string]string) bool) bool { return !match(labels) })
	}, nil
}

// selected returns the match function of a list's label_selector parameter.
func selected(r *rest.Request) (func(map[string]string) bool, error) {
	return selector(r.HTTP.URL.Query().Get("label_selector"))
}
