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
	given := r.HTTP.URL.Query()
	number := func(name string, usual, most int) (int, error) {
		if !given.Has(name) {
			return usual, nil
		}
		n, err := strconv.Atoi(given.Get(name))
		if err != nil || n < 1 || n > most {
			return 0, f.invalid("%s must be between 1 and %d", name, most)
		}
		return n, nil
	}
	per, err := number("per_page", 20, 200)
	if err != nil {
		return rest.Answer{}, err
	}
	n, err := number("page", 1, 1<<31)
	if err != nil {
		return rest.Answer{}, err
	}
	last := max(1, (len(all)+per-1)/per)
	at := func(n int) string {
		query := r.HTTP.URL.Query()
		query.Set("page", strconv.Itoa(n))
		return "https://api.digitalocean.com" + r.HTTP.URL.Path + "?" + query.Encode()
	}
	var l links
	if last > 1 {
		l.Pages = &pages{}
		if n > 1 {
			l.Pages.First, l.Pages.Prev = at(1), at(n-1)
		}
		if n < last {
			l.Pages.Next, l.Pages.Last = at(n+1), at(last)
		}
	}
	from := min(len(all), (n-1)*per)
	shown := append([]T{}, all[from:min(len(all), from+per)]...)
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{name: shown, "links": l, "meta": map[string]int{"total": len(all)}}}, nil
}
