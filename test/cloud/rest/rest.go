// Package rest is what the fronts of clouds with an API of JSON over HTTP have in common: routes, the way of a call through
// package cloud, and what faults make of an answer. The words and rules of one cloud are its front's.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// Config is what is one cloud's own.
type Config struct {
	Cloud *cloud.Cloud

	// Caller tells which instance a request comes from, by its token, "" if it is none's. An error is the answer.
	Caller func(r *http.Request) (instance string, err error)

	// Bucket is whose tokens a call of an action takes, see cloud.Call; nil: one bucket for all, named Account.
	Bucket func(action string) string

	// Translate words what package cloud refuses: its errors, cloud.ErrThrottled and *cloud.FailedError included, and ErrNoRoute.
	Translate func(err error) *Refusal

	// Headers adds what stands on every answer, such as what is left of a limit; may be nil.
	Headers func(h http.Header, action string)
}

// Account is the bucket that all calls take from unless Config.Bucket names another.
const Account = "account"

// ErrNoRoute is of a request that no route is for.
var ErrNoRoute = errors.New("the API has no such path or method")

// An Answer is what a route answers. A nil Body is no content at all.
type Answer struct {
	Status int
	Header http.Header
	Body   any // to be encoded as JSON
}

// A Refusal is an Answer that is an error.
type Refusal struct{ Answer }

// Error is for tests that look.
func (r *Refusal) Error() string {
	body, _ := json.Marshal(r.Body)
	return fmt.Sprintf("%d %s", r.Status, body)
}

// A Request is one call on its way. Its reads show what was up to cloud.Config.Lag ago.
type Request struct {
	*cloud.Request
	HTTP   *http.Request // for PathValue and the query; its body has been read
	Caller string
	Body   []byte
}

// Decode reads the body, as strictly as no cloud does: a field that the API does not have is an error.
func (r *Request) Decode(into any) error {
	d := json.NewDecoder(bytes.NewReader(r.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("the body goes on after its end")
	}
	return nil
}

// API serves routes. It is an http.Handler.
type API struct {
	cfg Config
	mux *http.ServeMux
}

// New returns an API without routes.
func New(cfg Config) *API {
	a := &API{cfg: cfg, mux: http.NewServeMux()}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a.serve(w, r, r.Method+" "+r.URL.Path, func(*Request) (Answer, error) { return Answer{}, ErrNoRoute })
	})
	return a
}

// Handle adds a route. Its pattern, as http.ServeMux has it with a method, is the action's name in rules, limits and counts:
// "GET /v2/volumes/{id}". What do returns as an error, a *Refusal or one of package cloud, is the answer.
func (a *API) Handle(pattern string, do func(*Request) (Answer, error)) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, pattern, do) })
}

// ServeHTTP implements http.Handler. What breaks the connection panics with http.ErrAbortHandler, as net/http wants it.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

func (a *API) serve(w http.ResponseWriter, r *http.Request, action string, do func(*Request) (Answer, error)) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	caller, err := a.cfg.Caller(r)
	bucket := Account
	if a.cfg.Bucket != nil {
		bucket = a.cfg.Bucket(action)
	}
	var answer Answer
	fault, err := a.cfg.Cloud.Do(r.Context(), cloud.Call{Action: action, Caller: caller, Bucket: bucket}, func(state *cloud.Request) error {
		if err != nil {
			return err
		}
		var problem error
		answer, problem = do(&Request{state, r, caller, body})
		return problem
	})
	var refusal *Refusal
	switch {
	case err == nil:
	case errors.As(err, &refusal):
		answer = refusal.Answer
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		panic(http.ErrAbortHandler)
	default:
		answer = a.cfg.Translate(err).Answer
	}
	a.write(w, action, answer, fault)
}

func (a *API) write(w http.ResponseWriter, action string, answer Answer, fault cloud.Fault) {
	var content []byte
	if answer.Body != nil {
		var err error
		if content, err = json.Marshal(answer.Body); err != nil {
			panic(fmt.Sprintf("rest: %s: %v", action, err))
		}
	}
	header := w.Header()
	header.Set("Date", a.cfg.Cloud.Now().UTC().Format(http.TimeFormat))
	if a.cfg.Headers != nil {
		a.cfg.Headers(header, action)
	}
	for name, values := range answer.Header {
		header[name] = values
	}
	if content != nil && header.Get("Content-Type") == "" {
		header.Set("Content-Type", "application/json; charset=utf-8")
	}
	if fault == cloud.Garbage {
		header.Set("Content-Type", "text/html")
	}
	httpsim.WriteResponse(w, answer.Status, content, fault)
}
