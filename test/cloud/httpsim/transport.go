// Package httpsim connects HTTP clients to a simulated cloud without sockets.
//
// Each request is handled in the goroutine that sends it, so tests can use testing/synctest.
package httpsim

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
	"strconv"
	"testing/iotest"
)

// Transport returns a RoundTripper that passes each request to the handler of its host. The host has no port. A handler breaks the
// connection by a panic with http.ErrAbortHandler.
func Transport(handler func(host string) http.Handler) http.RoundTripper { return transport(handler) }

// MetadataHost is the address of an instance's metadata service.
const MetadataHost = "169.254.169.254"

// InstanceTransport is Transport for one instance: MetadataHost is its metadata service, every other host the API.
func InstanceTransport(api, metadata http.Handler) http.RoundTripper {
	return Transport(func(host string) http.Handler {
		if host == MetadataHost {
			return metadata
		}
		return api
	})
}

type transport func(host string) http.Handler

var errBroken = errors.New("connection reset by peer")

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	received := r.Clone(r.Context())
	received.Host, received.RequestURI, received.RemoteAddr = cmp.Or(r.Host, r.URL.Host), r.URL.RequestURI(), "10.0.0.4:40000"
	if received.Body == nil {
		received.Body = http.NoBody
	}
	w := &recorder{header: http.Header{}}
	broken := serve(t(r.URL.Hostname()), w, received)
	if r.Body != nil {
		r.Body.Close() //nolint:errcheck // the handler has read it
	}
	if err := r.Context().Err(); err != nil && broken {
		return nil, err
	}
	if broken && w.status == 0 {
		return nil, errBroken
	}
	return w.response(r, broken), nil
}

// serve reports whether the handler broke the connection.
func serve(handler http.Handler, w http.ResponseWriter, r *http.Request) (broken bool) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			broken = true
		}
	}()
	handler.ServeHTTP(w, r)
	return false
}

// recorder is a ResponseWriter that keeps the response in memory.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *recorder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

func (w *recorder) response(r *http.Request, broken bool) *http.Response {
	length := int64(w.body.Len())
	if n, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64); err == nil {
		length = n
	}
	var body io.Reader = &w.body
	if broken {
		body = io.MultiReader(body, iotest.ErrReader(io.ErrUnexpectedEOF))
	}
	return newResponse(r, w.status, w.header, body, length)
}
