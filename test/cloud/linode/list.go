package linode

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// The limits of page sizes.
const (
	leastPage   = 25
	mostPage    = 500
	defaultPage = 100
)

// checkQuery refuses query parameters that a route does not have.
func checkQuery(r *rest.Request, pattern string) error {
	for key := range r.HTTP.URL.Query() {
		if pattern != "GET /v4/volumes" && !strings.HasPrefix(pattern, "GET /v4/linode/instances/{id}/") || key != "page" && key != "page_size" {
			return bad(key, "Unknown query parameter")
		}
	}
	return nil
}

func paginate[T any](r *rest.Request, all []T) (rest.Answer, error) {
	page, size := 1, defaultPage
	for key, into := range map[string]*int{"page": &page, "page_size": &size} {
		if text := r.HTTP.URL.Query().Get(key); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				return rest.Answer{}, bad(key, "Must be a number")
			}
			*into = n
		}
	}
	pages := max(1, (len(all)+size-1)/max(1, size))
	switch {
	case size < leastPage || size > mostPage:
		return rest.Answer{}, bad("page_size", "Must be %d-%d", leastPage, mostPage)
	case page < 1 || page > pages:
		return rest.Answer{}, notFound()
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{
		"data": all[(page-1)*size : min(page*size, len(all))], "page": page, "pages": pages, "results": len(all),
	}}, nil
}

// filterable returns the values of the fields that the reference marks as filterable. One of several values must match.
var filterable = map[string]func(cloud.Volume) []string{
	"label": func(v cloud.Volume) []string { return []string{v.Tags[labelKey]} },
	"tags":  tagsOf,
}

// parseFilter parses an X-Filter header ("Filtering and sorting"): {"tags": "a"}, {"label": {"+contains": "a"}}, {"+or":
// [filters]}.
func parseFilter(text string) (func(cloud.Volume) bool, error) {
	if text == "" {
		return func(cloud.Volume) bool { return true }, nil
	}
	return parseObject([]byte(text))
}

func parseObject(text []byte) (func(cloud.Volume) bool, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil || object == nil {
		return nil, bad("", "Cannot parse X-Filter")
	}
	var all []func(cloud.Volume) bool
	for key, value := range object {
		var match func(cloud.Volume) bool
		var err error
		switch key {
		case "+or", "+and":
			match, err = parseArray(key, value)
		case "+order", "+order_by": // the order is always by ID
			continue
		default:
			match, err = parseField(key, value)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, match)
	}
	return func(v cloud.Volume) bool {
		return !slices.ContainsFunc(all, func(match func(cloud.Volume) bool) bool { return !match(v) })
	}, nil
}

func parseArray(operator string, value json.RawMessage) (func(cloud.Volume) bool, error) {
	var items []json.RawMessage
	if err := json.Unmarshal(value, &items); err != nil || len(items) == 0 {
		return nil, bad("", "Cannot parse X-Filter")
	}
	matches := make([]func(cloud.Volume) bool, len(items))
	for i, item := range items {
		var err error
		if matches[i], err = parseObject(item); err != nil {
			return nil, err
		}
	}
	return func(v cloud.Volume) bool {
		met := 0
		for _, match := range matches {
			if match(v) {
				met++
			}
		}
		return met == len(matches) || operator == "+or" && met > 0
	}, nil
}

func parseField(field string, value json.RawMessage) (func(cloud.Volume) bool, error) {
	texts, known := filterable[field]
	if !known {
		return nil, bad("", "Cannot filter on %s", field)
	}
	is := strings.EqualFold
	var want string
	if json.Unmarshal(value, &want) != nil {
		var operators map[string]string
		if json.Unmarshal(value, &operators) != nil || len(operators) != 1 {
			return nil, bad("", "Cannot parse X-Filter")
		}
		for operator, operand := range operators {
			want = operand
			switch operator {
			case "+contains":
				is = func(has, want string) bool { return strings.Contains(strings.ToLower(has), strings.ToLower(want)) }
			case "+neq":
				is = func(has, want string) bool { return !strings.EqualFold(has, want) }
			default:
				return nil, bad("", "Unknown operator %s", operator)
			}
		}
	}
	return func(v cloud.Volume) bool {
		return slices.ContainsFunc(texts(v), func(has string) bool { return is(has, want) })
	}, nil
}
