package httpsim

import (
	"context"
	"io"
	"net/http"
	"strings"
)

// Send sends a request and reads the whole response. Headers are pairs of name and value.
func Send(ctx context.Context, transport http.RoundTripper, method, url, body string, headers ...string) (status int, header http.Header, answer string, err error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := transport.RoundTrip(r)
	if err != nil {
		return 0, nil, "", err
	}
	defer response.Body.Close() //nolint:errcheck // the body has been read
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, response.Header, string(content), err
}
