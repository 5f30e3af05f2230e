package ec2

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
)

// The limits of filters. See https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html
const (
	maxFilters      = 50
	maxFilterValues = 200 // in one request
)

// filter matches if one of its values matches. All filters of a request must match.
type filter struct {
	name   string
	values []string
}

// fieldsOf returns an object's values for a filter, and whether the action supports the filter.
type fieldsOf[T any] func(object T, filter string) (values []string, known bool)

func (p params) filters() ([]filter, error) {
	var filters []filter
	values := 0
	for _, i := range p.numbers("Filter") {
		at := "Filter." + strconv.Itoa(i)
		f := filter{p.get(at + ".Name"), p.list(at + ".Value")}
		if f.name == "" {
			return nil, refuse("InvalidParameterValue", "The filter name must not be empty")
		}
		if len(f.values) == 0 {
			return nil, refuse("InvalidParameterValue", "The filter '%s' must have at least one value", f.name)
		}
		values += len(f.values)
		filters = append(filters, f)
	}
	if len(filters) > maxFilters {
		return nil, refuse("FilterLimitExceeded", "The maximum number of filters specified on a single call is %d", maxFilters)
	}
	if values > maxFilterValues {
		return nil, refuse("FilterLimitExceeded", "The maximum number of filter values specified on a single call is %d", maxFilterValues)
	}
	return filters, nil
}

// checkFilters refuses filters that the action does not support.
func checkFilters[T any](filters []filter, fields fieldsOf[T]) error {
	var none T
	for _, f := range filters {
		if _, known := fields(none, f.name); !known {
			return refuse("InvalidParameterValue", "The filter '%s' is invalid", f.name)
		}
	}
	return nil
}

func matches[T any](object T, filters []filter, fields fieldsOf[T]) bool {
	for _, f := range filters {
		values, _ := fields(object, f.name)
		if !slices.ContainsFunc(values, func(value string) bool {
			return slices.ContainsFunc(f.values, func(pattern string) bool { return like(pattern, value, '\\') })
		}) {
			return false
		}
	}
	return true
}

// like matches wildcards: * is any characters, ? is one. A character after the escape character is literal.
func like(pattern, value string, escape rune) bool {
	if !strings.ContainsAny(pattern, `*?\`) {
		return pattern == value
	}
	return glob([]rune(pattern), []rune(value), escape)
}

func glob(pattern, value []rune, escape rune) bool {
	for len(pattern) > 0 {
		c := pattern[0]
		switch {
		case c == '*':
			for i := range len(value) + 1 {
				if glob(pattern[1:], value[i:], escape) {
					return true
				}
			}
			return false
		case len(value) == 0:
			return false
		case c == '?':
		case c == escape && escape != 0 && len(pattern) > 1:
			pattern = pattern[1:]
			if pattern[0] != value[0] {
				return false
			}
		case c != value[0]:
			return false
		}
		pattern, value = pattern[1:], value[1:]
	}
	return len(value) == 0
}

// tagFields are the filters of everything that has tags.
func tagFields(tags map[string]string, name string) (values []string, known bool) {
	if key, ok := strings.CutPrefix(name, "tag:"); ok {
		if value, has := tags[key]; has {
			values = append(values, value)
		}
		return values, true
	}
	if name == "tag-key" {
		for key := range tags {
			values = append(values, key)
		}
		return values, true
	}
	return nil, false
}

// read implements the Describe actions: IDs, filters and pages.
type read[T any] struct {
	param, kind, shown string // "VolumeId", "vol", "volumes"
	id                 func(T) string
	key                func(T) string // sort key of the objects
	missing            func(id string) error
	fields             fieldsOf[T]
	least, most        int  // of MaxResults
	capped             bool // a greater MaxResults is reduced to most
}

// of returns the objects that the request asks for and the token of the next page. Function load returns at least the matching
// objects.
func (d read[T]) of(r *request, load func(match func(T) bool) []T) (page []T, next string, err error) {
	filters, err := r.params.filters()
	if err != nil {
		return nil, "", err
	}
	if err := checkFilters(filters, d.fields); err != nil {
		return nil, "", err
	}
	ids := r.params.list(d.param)
	for _, id := range ids {
		if d.kind == "" {
			continue
		}
		if err := malformed(d.kind, id, d.shown); err != nil {
			return nil, "", err
		}
	}
	limit, err := r.params.number("MaxResults")
	if err != nil {
		return nil, "", err
	}
	if d.capped && limit != nil {
		*limit = min(*limit, d.most)
	}
	switch {
	case limit != nil && (*limit < d.least || *limit > d.most):
		return nil, "", refuse("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between %d and %d.", *limit, d.least, d.most)
	case limit != nil && len(ids) > 0:
		return nil, "", refuse("InvalidParameterCombination", "The parameter %s cannot be used with the parameter maxResults", d.shown)
	}
	// A page is cut before the filters, and a requested ID must exist.
	match := func(object T) bool { return matches(object, filters, d.fields) }
	if limit != nil || r.params.get("NextToken") != "" || len(ids) > 0 {
		match = nil
	}
	all := load(match)
	if len(ids) > 0 {
		if all, err = d.pick(all, ids); err != nil {
			return nil, "", err
		}
	}
	all, next, err = paged(r, all, limit, d.key)
	for _, object := range all {
		if matches(object, filters, d.fields) {
			page = append(page, object)
		}
	}
	return page, next, err
}

// everything is a load that returns all objects.
func everything[T any](all []T) func(func(T) bool) []T { return func(func(T) bool) []T { return all } }

// pick returns the objects with these IDs, or an error if one does not exist.
func (d read[T]) pick(all []T, ids []string) ([]T, error) {
	byID := make(map[string]T, len(all))
	for _, object := range all {
		byID[d.id(object)] = object
	}
	for _, id := range ids {
		if _, ok := byID[id]; !ok {
			return nil, d.missing(id)
		}
	}
	return slices.DeleteFunc(all, func(object T) bool { return !slices.Contains(ids, d.id(object)) }), nil
}

// paged returns one page. Filters apply afterwards, so a page can be short or empty without being the last, as AWS documents. A
// token is valid only for the same request.
func paged[T any](r *request, all []T, limit *int, key func(T) string) (page []T, next string, err error) {
	mark := r.params.fingerprint("NextToken", "MaxResults", "DryRun")
	if token := r.params.get("NextToken"); token != "" {
		decoded, err := base64.RawURLEncoding.DecodeString(token)
		of, last, ok := strings.Cut(string(decoded), " ")
		if err != nil || !ok || of != mark {
			return nil, "", refuse("InvalidPaginationToken", "The pagination token is invalid or has expired.")
		}
		all = slices.DeleteFunc(all, func(object T) bool { return key(object) <= last })
	}
	if limit == nil || len(all) <= *limit {
		return all, "", nil
	}
	page = all[:*limit]
	return page, base64.RawURLEncoding.EncodeToString([]byte(mark + " " + key(page[len(page)-1]))), nil
}

// fingerprint is a hash of all parameters except some.
func (p params) fingerprint(except ...string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(keys(p.Values)) {
		if !slices.Contains(except, name) {
			h.Write([]byte(name + "=" + p.get(name) + "\n"))
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// boolean and the next functions format values for filters.
func boolean(b bool) []string { return []string{strconv.FormatBool(b)} }

func integer[N int | int64](n N) []string { return []string{strconv.FormatInt(int64(n), 10)} }

func attachmentsOf(v cloud.Volume, field func(cloud.Attachment) string) (values []string) {
	for _, a := range v.Attachments {
		values = append(values, field(a))
	}
	return values
}

// byAge is a sort key: by time, then by ID.
func byAge(t time.Time, id string) string { return fmt.Sprintf("%020d %s", t.UnixNano(), id) }
