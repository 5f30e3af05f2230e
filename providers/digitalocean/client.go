package digitalocean

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers/rest"
)

// done is explain for answers without content.
func (p *Provider) done(ctx context.Context, action string, answer *godo.Response, err error) error {
	return p.explain(ctx, action, err, answer != nil && answer.StatusCode == http.StatusNoContent)
}

// repeatable reports whether a POST can be carried out twice without harm: a second volume of the name is refused, adding a tag again
// changes nothing, and an attached volume is not attached again.
func repeatable(r *http.Request) bool {
	switch {
	case r.URL == nil:
		return false
	case strings.HasSuffix(r.URL.Path, "/v2/volumes"), strings.Contains(r.URL.Path, "/v2/tags"):
		return true
	case !strings.HasSuffix(r.URL.Path, "/actions") || r.GetBody == nil:
		return false
	}
	body, err := r.GetBody()
	if err != nil {
		return false
	}
	var action struct{ Type string }
	err = json.NewDecoder(body).Decode(&action)
	body.Close() //nolint:errcheck // it is in memory
	return err == nil && action.Type == "attach"
}

// pages reads a whole list.
func pages[T any](ctx context.Context, p *Provider, action string, id func(T) string, fetch func(context.Context, *godo.ListOptions) ([]T, *godo.Response, error)) ([]T, error) {
	const most = 200
	return rest.Pages("DigitalOcean", id, func(n int) ([]T, int, bool, error) {
		part, answer, err := fetch(ctx, &godo.ListOptions{Page: n, PerPage: most})
		if err := p.explain(ctx, action, err, answer != nil && answer.Meta != nil); err != nil {
			return nil, 0, false, err
		}
		return part, answer.Meta.Total, answer.Links == nil || answer.Links.IsLastPage(), nil
	})
}
