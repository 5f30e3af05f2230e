package wire

import (
	"context"
	"io"
	"net/http"
	"strings"
)

// Send makes a request by hand, with headers of name, value, name, value, and reads the whole answer.
func Send(ctx context.Context, way http.RoundTripper, method, url, body string, headers ...string) (status int, header http.Header, answer string, err error) {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := way.RoundTrip(r)
	if err != nil {
		return 0, nil, "", err
	}
	defer response.Body.Close() //nolint:errcheck // it has been read
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, response.Header, string(content), err
}
