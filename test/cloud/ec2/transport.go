package ec2

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
)

// MetadataHosts are where Transport finds the metadata service.
var MetadataHosts = []string{"169.254.169.254", "metadata"}

// Transport returns what connects the clients of one instance without sockets: to the instance's metadata service, see
// MetadataHosts, and under every other host to EC2. The instance is who asks for metadata; EC2 knows the sender of a
// request by its credentials. Requests are handled in the goroutine that sends them, so that it works in a bubble of
// testing/synctest.
func (f *Front) Transport(instance string) http.RoundTripper {
	return f.TransportWith(instance, MetadataOptions{})
}

// TransportWith is Transport with a metadata service of that kind.
func (f *Front) TransportWith(instance string, options MetadataOptions) http.RoundTripper {
	return &transport{api: f, metadata: f.Metadata(instance, options)}
}

type transport struct{ api, metadata http.Handler }

var errBroken = errors.New("connection reset by peer")

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	got := r.Clone(r.Context())
	got.Host, got.RequestURI, got.RemoteAddr = host(r), r.URL.RequestURI(), "10.0.0.4:40000"
	if got.Body == nil {
		got.Body = http.NoBody
	}
	handler := t.api
	for _, name := range MetadataHosts {
		if r.URL.Hostname() == name {
			handler = t.metadata
		}
	}
	w := &answer{header: http.Header{}}
	broken := serve(handler, w, got)
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
