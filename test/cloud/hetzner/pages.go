package hetzner

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/blockvol/blockvol/test/cloud/rest"
)

// query refuses parameters that a path does not have. An asterisk marks parameters that can be repeated.
func query(r *rest.Request, known ...string) error {
	for name, values := range r.HTTP.URL.Query() {
		if !slices.Contains(known, name+"*") && (!slices.Contains(known, name) || len(values) != 1) {
			return invalid(name, "unknown parameter")
		}
	}
	return nil
}

type pagination struct {
	Page         int  `json:"page"`
	PerPage      int  `json:"per_page"`
	PreviousPage *int `json:"previous_page"`
	NextPage     *int `json:"next_page"`
	LastPage     int  `json:"last_page"`
	TotalEntries int  `json:"total_entries"`
}

// page returns one page of the objects, under their name.
func page[T any](r *rest.Request, name string, all []T) (rest.Answer, error) {
	at, err := r.Page(len(all), 25, 50, func(name string, most int) error { return invalid(name, "must be between 1 and %d", most) })
	if err != nil {
		return rest.Answer{}, err
	}
	p := pagination{Page: at.Number, PerPage: at.Size, LastPage: at.Last, TotalEntries: len(all)}
	var links []string
	link := func(rel string, n int) *int {
		q := r.HTTP.URL.Query()
		q.Set("page", strconv.Itoa(n))
		links = append(links, fmt.Sprintf("<https://api.hetzner.cloud%s?%s>; rel=%q", r.HTTP.URL.Path, q.Encode(), rel))
		return &n
	}
	if at.Number > 1 {
		p.PreviousPage = link("prev", at.Number-1)
	}
	if at.Number < at.Last {
		p.NextPage = link("next", at.Number+1)
		link("last", p.LastPage)
	}
	answer := rest.Answer{Status: http.StatusOK, Body: map[string]any{"meta": map[string]any{"pagination": p}}}
	if len(links) > 0 {
		answer.Header = http.Header{"Link": {strings.Join(links, ", ")}}
	}
	answer.Body.(map[string]any)[name] = append([]T{}, all[at.From:at.To]...)
	return answer, nil
}

// sorted sorts objects as the request's sort parameter says, by default in the usual order.
func sorted[T any](r *rest.Request, all []T, orders map[string]func(a, b T) int, usual string) error {
	wanted := append(r.HTTP.URL.Query()["sort"], usual)
	var by []func(a, b T) int
	for _, word := range wanted {
		field, direction, _ := strings.Cut(word, ":")
		compare := orders[field]
		if compare == nil || direction != "" && direction != "asc" && direction != "desc" {
			return invalid("sort", "unknown order '%s'", word)
		}
		if direction == "desc" {
			up := compare
			compare = func(a, b T) int { return up(b, a) }
		}
		by = append(by, compare)
	}
	slices.SortStableFunc(all, func(a, b T) int {
		for _, compare := range by {
			if order := compare(a, b); order != 0 {
				return order
			}
		}
		return 0
	})
	return nil
}
