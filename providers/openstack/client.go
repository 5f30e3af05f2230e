package openstack

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
)

// call makes a request, and repeats it once with a new token if the token is refused. The action is a noun: "the request for a
// token".
func call[T any](ctx context.Context, p *Provider, action string, do func(context.Context, *session) (T, error)) (T, error) {
	for again := true; ; again = false {
		var none T
		s, err := p.session.Get(ctx)
		if err != nil {
			return none, err
		}
		value, err := do(ctx, s)
		if err == nil {
			return value, nil
		}
		if again && gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
			p.end(s)
			continue
		}
		return none, p.explain(ctx, action, err)
	}
}

// done is the result of a call without one.
type done struct{}

// perPage is the most that Cinder returns at once by default.
const perPage = 1000

// list returns all items of one of Cinder's lists, and the time of the last answer by the cloud's clock; zero if unknown. It does not
// follow the links to the next page, which behind proxies often lead elsewhere: a page starts after the ID of the last item.
func list[T any](ctx context.Context, p *Provider, action, microversion, kind string, query url.Values, id func(T) string) (all []T, now time.Time, err error) {
	query.Set("limit", strconv.Itoa(perPage))
	for {
		page, err := call(ctx, p, action, func(ctx context.Context, s *session) (map[string]json.RawMessage, error) {
			var page map[string]json.RawMessage
			answer, err := s.with(microversion).Get(ctx, s.volume.ServiceURL(kind, "detail")+"?"+query.Encode(), &page, nil) //nolint:bodyclose // Get closes it
			if err == nil {
				now, _ = http.ParseTime(answer.Header.Get("Date"))
			}
			return page, err
		})
		if err != nil {
			return all, now, err
		}
		var some []T
		var links []gophercloud.Link
		err = json.Unmarshal(page[kind], &some)
		if text, is := page[kind+"_links"]; is && err == nil {
			err = json.Unmarshal(text, &links)
		}
		if err != nil {
			return all, now, p.client.NoAnswer(ctx, action, err)
		}
		all = append(all, some...)
		next, err := gophercloud.ExtractNextURL(links)
		if err != nil || next == "" || len(some) == 0 || id(some[len(some)-1]) == query.Get("marker") {
			return all, now, err
		}
		query.Set("marker", id(some[len(some)-1]))
	}
}

// repeatable returns true for requests that can be carried out twice: for a token, and to set metadata.
func repeatable(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "/auth/tokens") || strings.HasSuffix(r.URL.Path, "/metadata")
}
