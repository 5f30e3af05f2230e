package httpsim

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// RoundTripFunc is a function that is an http.RoundTripper.
type RoundTripFunc func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f RoundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Before returns a RoundTripper that calls do before it passes each request to next.
func Before(next http.RoundTripper, do func(*http.Request)) http.RoundTripper {
	return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
		do(r)
		return next.RoundTrip(r)
	})
}

// Response returns a response to r with this content type and body.
func Response(r *http.Request, status int, contentType, body string) *http.Response {
	return newResponse(r, status, http.Header{"Content-Type": {contentType}}, strings.NewReader(body), int64(len(body)))
}

func newResponse(r *http.Request, status int, header http.Header, body io.Reader, length int64) *http.Response {
	return &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(body), ContentLength: length, Request: r,
	}
}

// ReplaceBody replaces from by to in the body of a response from this package.
func ReplaceBody(response *http.Response, from, to string) {
	body, err := io.ReadAll(response.Body)
	if err != nil {
		panic(err)
	}
	body = bytes.ReplaceAll(body, []byte(from), []byte(to))
	response.Body, response.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	response.Header.Del("Content-Length")
}
