package ec2

import (
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// params are a request's parameters by their flattened names: "Filter.1.Value.2".
type params struct{ url.Values }

func newParams(form url.Values) params { return params{form} }

func (p params) get(name string) string { return p.Get(name) }

func (p params) has(name string) bool { return p.Has(name) }

var numbers = regexp.MustCompile(`\.[0-9]+(\.|$)`)

// check refuses parameters that the action does not have.
func (p params) check(takes string) error {
	known := append(strings.Fields(takes), "Action", "Version", "DryRun")
	for _, name := range slices.Sorted(keys(p.Values)) {
		shape := name
		for shape != numbers.ReplaceAllString(shape, ".N$1") { // overlapping matches need another round
			shape = numbers.ReplaceAllString(shape, ".N$1")
		}
		if !slices.Contains(known, shape) {
			return refuse("UnknownParameter", "The parameter %s is not recognized", name)
		}
		if len(p.Values[name]) != 1 {
			return refuse("InvalidParameterValue", "The parameter %s is given several times", name)
		}
	}
	return nil
}

func keys(v url.Values) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range v {
			if !yield(k) {
				return
			}
		}
	}
}

// narrowed reports whether a read is limited by IDs, filters or pages.
func (p params) narrowed() bool {
	for name := range p.Values {
		if name == "MaxResults" || strings.Contains(name, ".") {
			return true
		}
	}
	return false
}

// need refuses a request without these parameters.
func (p params) need(names ...string) error {
	for _, name := range names {
		if p.get(name) == "" {
			return refuse("MissingParameter", "The request must contain the parameter %s", strings.ToLower(name[:1])+name[1:])
		}
	}
	return nil
}

// number returns an integer, or nil if it is absent.
func (p params) number(name string) (*int, error) {
	if !p.has(name) {
		return nil, nil
	}
	n, err := strconv.ParseInt(p.get(name), 10, 32)
	if err != nil {
		return nil, refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid. Expected an integer.", p.get(name), name)
	}
	value := int(n)
	return &value, nil
}

// truth returns a boolean.
func (p params) truth(name string) (bool, error) {
	switch p.get(name) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid. Expected a boolean.", p.get(name), name)
	}
}

// list returns the values of name.1, name.2, … in the order of their numbers, which may have gaps.
func (p params) list(name string) []string {
	values := make([]string, 0, len(p.Values))
	for _, i := range p.numbers(name) {
		values = append(values, p.get(name+"."+strconv.Itoa(i)))
	}
	return values
}

// numbers returns the numbers that follow a name.
func (p params) numbers(name string) []int {
	var found []int
	for key := range p.Values {
		rest, ok := strings.CutPrefix(key, name+".")
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, ".")
		if i, err := strconv.Atoi(number); err == nil && !slices.Contains(found, i) {
			found = append(found, i)
		}
	}
	slices.Sort(found)
	return found
}

// tag is a key and a value. In DeleteTags the value may be absent.
type tag struct {
	key, value string
	valued     bool
}

// tags returns the values of name.1.Key, name.1.Value, …
func (p params) tags(name string) []tag {
	var tags []tag
	for _, i := range p.numbers(name) {
		at := name + "." + strconv.Itoa(i)
		tags = append(tags, tag{p.get(at + ".Key"), p.get(at + ".Value"), p.has(at + ".Value")})
	}
	return tags
}

// The rules for tags. See https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions
const (
	maxTags     = 50
	maxTagKey   = 128 // characters
	maxTagValue = 256
)

// tagMap checks tags to be set.
func tagMap(tags []tag) (map[string]string, error) {
	m := make(map[string]string, len(tags))
	for _, t := range tags {
		switch {
		case t.key == "":
			return nil, refuse("InvalidParameterValue", "Tag key cannot be null or empty.")
		case utf8.RuneCountInString(t.key) > maxTagKey:
			return nil, refuse("InvalidParameterValue", "Tag key exceeds the maximum length of %d characters", maxTagKey)
		case utf8.RuneCountInString(t.value) > maxTagValue:
			return nil, refuse("InvalidParameterValue", "Tag value exceeds the maximum length of %d characters", maxTagValue)
		case !utf8.ValidString(t.key + t.value):
			return nil, refuse("InvalidParameterValue", "Tag keys and values must be valid UTF-8")
		case strings.HasPrefix(strings.ToLower(t.key), "aws:"):
			return nil, refuse("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use")
		}
		if _, twice := m[t.key]; twice {
			return nil, refuse("InvalidParameterValue", "Duplicate tag key '%s' specified.", t.key)
		}
		m[t.key] = t.value
	}
	if len(m) > maxTags {
		return nil, tooManyTags()
	}
	return m, nil
}

func tooManyTags() error {
	return refuse("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
}

// specifiedTags returns the tags for a new resource of this type.
func (p params) specifiedTags(resource string) (map[string]string, error) {
	var tags []tag
	for n, i := range p.numbers("TagSpecification") {
		at := "TagSpecification." + strconv.Itoa(i)
		got := p.get(at + ".ResourceType")
		switch {
		case got == "":
			return nil, refuse("InvalidParameterValue", "Tag specification resource type must have a value")
		case got != resource:
			return nil, refuse("InvalidParameterValue", "'%s' is not a valid taggable resource type for this operation.", got)
		case n > 0:
			return nil, refuse("InvalidParameterValue", "The same resource type may not be specified more than once in tag specifications")
		}
		own := p.tags(at + ".Tag")
		if len(own) == 0 {
			return nil, refuse("InvalidParameterValue", "Tag specification must have at least one tag")
		}
		tags = append(tags, own...)
	}
	return tagMap(tags)
}

// The formats of IDs.
var (
	anID        = regexp.MustCompile(`^(vol|i|snap)-([0-9a-f]{8}|[0-9a-f]{17})$`)
	clientToken = regexp.MustCompile(`^[\x21-\x7e]{1,64}$`)
)

// malformed returns an error if id cannot be an ID of this kind.
func malformed(kind, id, param string) error {
	if match := anID.FindStringSubmatch(id); match != nil && match[1] == kind {
		return nil
	}
	switch kind {
	case "i":
		return refuse("InvalidInstanceID.Malformed", "Invalid id: %q", id)
	case "snap":
		return refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid. Expected: 'snap-...'.", id, param)
	default:
		return refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid. Expected: 'vol-...'.", id, param)
	}
}

func noVolume(id string) error {
	return refuse("InvalidVolume.NotFound", "The volume '%s' does not exist.", id)
}

func noInstance(id string) error {
	return refuse("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
}

func noSnapshot(id string) error {
	return refuse("InvalidSnapshot.NotFound", "The snapshot '%s' does not exist.", id)
}
