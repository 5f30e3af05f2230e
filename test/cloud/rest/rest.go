// Package rest serves the JSON APIs of simulated clouds: routes, calls of package cloud, and faults.
//
// The front end of each cloud adds its paths, rules and errors.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// Config is the part that differs between clouds.
type Config struct {
	Cloud *cloud.Cloud

	// Caller returns the instance that a request comes from, according to its token, or "". An error is sent as the response.
	Caller func(r *http.Request) (instance string, err error)

	// Bucket returns an action's rate limit bucket, see cloud.Call. If nil, all actions use Account.
	Bucket func(action string) string

	// Translate makes the response for an error of package cloud, including cloud.ErrThrottled and *cloud.FailedError, and for
	// ErrNoRoute.
	Translate func(err error) *Refusal

	// Headers adds headers to every response, such as rate limits. It may be nil.
	Headers func(h http.Header, action string)
}

// Account is the bucket of all calls unless Config.Bucket returns another.
const Account = "account"

// ErrNoRoute is the error of a request without a matching route.
var ErrNoRoute = errors.New("the API has no such path or method")

// Answer is the response of a route. A nil Body is no content.
type Answer struct {
	Status int
	Header http.Header
	Body   any // to be encoded as JSON
}

// Refusal is an Answer that is an error.
type Refusal struct{ Answer }

// Error implements error.
func (r *Refusal) Error() string {
	body, _ := json.Marshal(r.Body)
	return fmt.Sprintf("%d %s", r.Status, body)
}

// Request is a call. Its reads are subject to cloud.Config.Lag.
type Request struct {
	*cloud.Request
	HTTP   *http.Request // for PathValue and the query; the body has been read
	Caller string
	Body   []byte
}

// Decode decodes the JSON body. Unlike the clouds it refuses unknown fields.
func (r *Request) Decode(into any) error {
	d := json.NewDecoder(bytes.NewReader(r.Body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("data after the end of the JSON body")
	}
	return nil
}

// Page is a page of a list.
type Page struct {
	Number, Size, Last int // Last is the number of the last page
	From, To           int // the page's part of the list
}

// Page returns the page of a list of total objects that the query asks for with page and per_page. The error of a value that is
// not from 1 to most is that of invalid.
func (r *Request) Page(total, usual, most int, invalid func(name string, most int) error) (p Page, err error) {
	query := r.HTTP.URL.Query()
	number := func(name string, usual, most int) int {
		if !query.Has(name) {
			return usual
		}
		n, parseErr := strconv.Atoi(query.Get(name))
		if err == nil && (parseErr != nil || n < 1 || n > most) {
			err = invalid(name, most)
		}
		return n
	}
	p.Size, p.Number = number("per_page", usual, most), number("page", 1, 1<<31)
	if err != nil {
		return Page{}, err
	}
	p.Last = max(1, (total+p.Size-1)/p.Size)
	p.From = min(total, (p.Number-1)*p.Size)
	p.To = min(total, p.From+p.Size)
	return p, nil
}

// API is an http.Handler that serves routes.
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

// Handle adds a route. The pattern of http.ServeMux with a method, such as "GET /v2/volumes/{id}", is the action's name in
// rules, limits and counts. An error from do is a *Refusal or an error of package cloud.
func (a *API) Handle(pattern string, do func(*Request) (Answer, error)) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, pattern, do) })
}

// ServeHTTP implements http.Handler. It panics with http.ErrAbortHandler to break the connection.
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
