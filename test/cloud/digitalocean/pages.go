package digitalocean

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/blockvol/blockvol/test/cloud/rest"
)

// query refuses parameters that a path does not have.
func (f *Front) query(r *rest.Request, known ...string) (url.Values, error) {
	given := r.HTTP.URL.Query()
	for name, values := range given {
		if !slices.Contains(known, name) || len(values) != 1 {
			return nil, f.refuse(http.StatusBadRequest, "unknown parameter %q", name)
		}
	}
	return given, nil
}

type links struct {
	Pages *pages `json:"pages,omitempty"`
}

type pages struct {
	First string `json:"first,omitempty"`
	Prev  string `json:"prev,omitempty"`
	Next  string `json:"next,omitempty"`
	Last  string `json:"last,omitempty"`
}

// page returns one page of the objects, under their name.
func page[T any](f *Front, r *rest.Request, name string, all []T) (rest.Answer, error) {
	p, err := r.Page(len(all), 20, 200, func(name string, most int) error { return f.invalid("%s must be between 1 and %d", name, most) })
	if err != nil {
		return rest.Answer{}, err
	}
	at := func(n int) string {
		query := r.HTTP.URL.Query()
		query.Set("page", strconv.Itoa(n))
		return "https://api.digitalocean.com" + r.HTTP.URL.Path + "?" + query.Encode()
	}
	var l links
	if p.Last > 1 {
		l.Pages = &pages{}
		if p.Number > 1 {
			l.Pages.First, l.Pages.Prev = at(1), at(p.Number-1)
		}
		if p.Number < p.Last {
			l.Pages.Next, l.Pages.Last = at(p.Number+1), at(p.Last)
		}
	}
	shown := append([]T{}, all[p.From:p.To]...)
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{name: shown, "links": l, "meta": map[string]int{"total": len(all)}}}, nil
}
