// Package wire connects clients with a simulated cloud without sockets. Requests are handled in the goroutine that sends them,
// so that it works in a bubble of testing/synctest.
package wire

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
)

// Transport returns what takes each request to the handler of its host, the name alone, without a port. What a handler breaks off
// with http.ErrAbortHandler, breaks the connection.
func Transport(handler func(host string) http.Handler) http.RoundTripper { return transport(handler) }

// MetadataHost is where instances find their metadata service.
const MetadataHost = "169.254.169.254"

// Instance is Transport for the clients of one instance: to its metadata service under MetadataHost, and under every other host
// to the API.
func Instance(api, metadata http.Handler) http.RoundTripper {
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
	got := r.Clone(r.Context())
	got.Host, got.RequestURI, got.RemoteAddr = host(r), r.URL.RequestURI(), "10.0.0.4:40000"
	if got.Body == nil {
		got.Body = http.NoBody
	}
	w := &answer{header: http.Header{}}
	broken := serve(t(r.URL.Hostname()), w, got)
	if r.Body != nil {
		r.Body.Close() //nolint:errcheck // it has been read
	}
	if err := r.Context().Err(); err != nil && broken {
		return nil, err
	}
	if broken && w.status == 0 {
		return nil, errBroken
	}
	return w.response(r, broken), nil
}

func host(r *http.Request) string {
	if r.Host != "" {
		return r.Host
	}
	return r.URL.Host
}

// serve tells whether the handler broke the connection off.
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

// An answer is what a handler writes.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

func (a *answer) response(r *http.Request, broken bool) *http.Response {
	length := int64(a.body.Len())
	if n, err := strconv.ParseInt(a.header.Get("Content-Length"), 10, 64); err == nil {
		length = n
	}
	var body io.Reader = &a.body
	if broken {
		body = io.MultiReader(body, breaks{})
	}
	return &http.Response{
		Status: strconv.Itoa(a.status) + " " + http.StatusText(a.status), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(body), ContentLength: length, Request: r,
	}
}

// breaks is the end of a body that is not whole.
type breaks struct{}

func (breaks) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
