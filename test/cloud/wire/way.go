package wire

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Way is an http.RoundTripper that is a function: what stands between a client and a cloud, or in the cloud's place.
type Way func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (w Way) RoundTrip(r *http.Request) (*http.Response, error) { return w(r) }

// Before is a way on which something happens before each request goes on.
func Before(way http.RoundTripper, do func(*http.Request)) http.RoundTripper {
	return Way(func(r *http.Request) (*http.Response, error) {
		do(r)
		return way.RoundTrip(r)
	})
}

// Answer is one by hand, of a media type.
func Answer(r *http.Request, status int, kind, body string) *http.Response {
	return &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}

// Replace changes a text of an answer that is in memory.
func Replace(answer *http.Response, from, to string) {
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		panic(err)
	}
	body = bytes.ReplaceAll(body, []byte(from), []byte(to))
	answer.Body, answer.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	answer.Header.Del("Content-Length")
}
