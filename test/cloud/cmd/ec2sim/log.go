package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// log prints a line for each call.
type log struct {
	mu      sync.Mutex
	out     io.Writer
	callers map[string]string // instance by access key
}

func (l *log) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, format+"\n", args...)
}

func (l *log) know(key, who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.callers[key] = who
}

func (l *log) caller(key string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.callers[key], "unknown")
}

var (
	keyID     = regexp.MustCompile(`Credential=([A-Z0-9]+)/`)
	errorCode = regexp.MustCompile(`<Code>([^<]*)</Code>`)
)

// calls logs calls to EC2: caller, action, objects, result and duration.
func (l *log) calls(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		form, err := url.ParseQuery(string(body))
		if err != nil {
			form = url.Values{}
		}
		who := "unknown"
		if match := keyID.FindStringSubmatch(r.Header.Get("Authorization")); match != nil {
			who = l.caller(match[1])
		}
		l.watch(who, summary(form), next, w, r)
	})
}

// metadata logs requests to an instance's metadata service.
func (l *log) metadata(instance string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.watch(instance, r.Method+" "+r.URL.Path, next, w, r)
	})
}

// summary returns the action with its parameters.
func summary(form url.Values) string {
	var parts []string
	for name, values := range form {
		if name != "Action" && name != "Version" && name != "ClientToken" {
			parts = append(parts, name+"="+strings.Join(values, ","))
		}
	}
	slices.Sort(parts)
	return strings.Join(append([]string{form.Get("Action")}, parts...), " ")
}

func (l *log) watch(who, what string, next http.Handler, w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	watched := &watched{ResponseWriter: w}
	defer func() {
		result := "connection broken"
		if p := recover(); p != nil {
			defer panic(p) // net/http breaks the connection
		} else {
			result = watched.result
		}
		l.printf("%s %-19s %s: %s in %s", start.Format("15:04:05.000"), who, what, result, time.Since(start).Round(time.Millisecond))
	}()
	next.ServeHTTP(watched, r)
}

// watched records how a request ended.
type watched struct {
	http.ResponseWriter
	status int
	result string
}

func (w *watched) WriteHeader(status int) {
	w.status, w.result = status, http.StatusText(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *watched) Write(b []byte) (int, error) {
	if match := errorCode.FindSubmatch(b); match != nil && w.status >= http.StatusBadRequest {
		w.result = string(match[1])
	}
	return w.ResponseWriter.Write(b)
}

// Flush implements http.Flusher.
func (w *watched) Flush() {
	if flusher, ok := w.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
}
