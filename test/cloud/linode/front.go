// Package linode simulates the Linode (Akamai Cloud) API v4 for volumes, for reading instances and for their power, and the instance
// metadata service.
//
// It follows the reference (https://techdocs.akamai.com/linode-api/reference/api) and uses Linode's error messages where they
// are known: Linode has no error codes. It is strict where the reference leaves a choice: unknown fields, queries and filters
// are refused, a second change of an instance at the same time is "Linode busy.", a volume's label is free only after the
// volume is gone, and an instance's own disks count like volumes.
//
// The API does not show pending attachments: a volume has its instance from the request to attach until the device is gone.
//
// It does not simulate creating and otherwise changing instances, configuration profiles, tags as objects, events, users with limited
// rights, clones, transfers and migrations; nor that an attached volume's device keeps its size after a resize until the volume
// is attached again.
package linode

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// Config configures a front end. The cloud's zones are the regions.
type Config struct {
	Cloud *cloud.Cloud

	Plain []string // regions without encryption of volumes
}

// Front is the front end of the Linode API.
type Front struct {
	*rest.Tokens // personal access tokens

	cfg   Config
	cloud *cloud.Cloud
	api   *rest.API

	changing sync.Mutex // held from the check of a change until the change

	mu       sync.Mutex
	without  map[string]bool    // regions without Block Storage
	shown    map[string]string  // instance statuses set by Show
	sessions map[string]session // by token of the metadata service
}

// New returns a front end.
func New(cfg Config) *Front {
	f := &Front{
		Tokens: rest.NewTokens(func(instance string) string { return fmt.Sprintf("%064x", "pat of "+instance) }),
		cfg:    cfg, cloud: cfg.Cloud, without: map[string]bool{}, shown: map[string]string{}, sessions: map[string]session{},
	}
	f.api = rest.New(rest.Config{Cloud: cfg.Cloud, Caller: f.caller, Bucket: bucketOf, Translate: f.translate, Headers: f.headers})
	f.handle("GET /v4/volumes", "volumes:read_only", f.listVolumes)
	f.handle("POST /v4/volumes", "volumes:read_write", f.createVolume)
	f.handle("GET /v4/volumes/{id}", "volumes:read_only", f.getVolume)
	f.handle("PUT /v4/volumes/{id}", "volumes:read_write", f.updateVolume)
	f.handle("DELETE /v4/volumes/{id}", "volumes:read_write", f.deleteVolume)
	f.handle("POST /v4/volumes/{id}/attach", "volumes:read_write linodes:read_write", f.attachVolume)
	f.handle("POST /v4/volumes/{id}/detach", "volumes:read_write linodes:read_write", f.detachVolume)
	f.handle("POST /v4/volumes/{id}/resize", "volumes:read_write", f.resizeVolume)
	f.handle("GET /v4/linode/instances/{id}", "linodes:read_only", f.getInstance)
	f.handle("POST /v4/linode/instances/{id}/shutdown", "linodes:read_write", f.shutdown)
	f.handle("POST /v4/linode/instances/{id}/boot", "linodes:read_write", f.boot)
	f.handle("GET /v4/linode/instances/{id}/disks", "linodes:read_only", f.listDisks)
	f.handle("GET /v4/linode/instances/{id}/volumes", "linodes:read_only", f.listHeld)
	return f
}

// handle adds a route that needs these OAuth scopes.
func (f *Front) handle(pattern, scopes string, do func(*rest.Request) (rest.Answer, error)) {
	f.api.Handle(pattern, func(r *rest.Request) (rest.Answer, error) {
		for _, scope := range strings.Fields(scopes) {
			if !f.May(r.HTTP, scope, strings.Replace(scope, "read_only", "read_write", 1)) {
				return rest.Answer{}, refuse(http.StatusForbidden, "", "Your OAuth token is not authorized to use this endpoint.")
			}
		}
		if err := checkQuery(r, pattern); err != nil {
			return rest.Answer{}, err
		}
		answer, err := do(r)
		if answer.Header == nil {
			answer.Header = http.Header{}
		}
		answer.Header.Set("X-Oauth-Scopes", "*")
		if scopes := f.Scopes(r.HTTP); scopes != nil {
			answer.Header.Set("X-Oauth-Scopes", strings.Join(scopes, " "))
		}
		return answer, err
	})
}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) { f.api.ServeHTTP(w, r) }

// Transport connects an instance's clients without sockets, see httpsim.InstanceTransport.
func (f *Front) Transport(instance string) http.RoundTripper {
	return httpsim.InstanceTransport(f, f.Metadata(instance))
}

// Withdraw removes Block Storage from a region's capabilities. No volumes can be created there afterwards.
func (f *Front) Withdraw(region string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.without[region] = true
}

// sells reports whether volumes can be created in a region.
func (f *Front) sells(region string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.cloud.Zones(), region) && !f.without[region]
}

// Show sets the status that the API shows for an instance. "" restores the real one.
func (f *Front) Show(instance, status string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shown[instance] = status
}

// Serial returns the serial of the volume's device in the kernel: its label.
func (f *Front) Serial(volume string) string {
	v, _ := f.cloud.Volume(volume)
	return v.Tags[labelKey]
}

var lastID atomic.Int64

// ID is for cloud.Config.ID: ascending numbers.
func ID(kind cloud.Kind, _ uint64) string {
	n := lastID.Add(1)
	if kind == cloud.AnInstance {
		n += 71_000_000
	} else {
		n += 9_000_000
	}
	return strconv.FormatInt(n, 10)
}

// The buckets of requests. Other calls use rest.Account.
const (
	listing  = "listing"
	creating = "creating"
)

func bucketOf(action string) string {
	switch action {
	case "GET /v4/volumes":
		return listing
	case "POST /v4/volumes":
		return creating
	default:
		return rest.Account
	}
}

// Limits returns the limits of the reference, "Rate limits", as token buckets. Linode's are windows of a minute.
func Limits(bucket string) cloud.Bucket {
	perMinute := map[string]int{listing: 200, creating: 100, rest.Account: 800}[bucket]
	return cloud.Bucket{Size: perMinute, PerSecond: float64(perMinute) / 60}
}

func (f *Front) headers(h http.Header, action string) {
	h.Set("Content-Type", "application/json")
	h.Set("X-Spec-Version", "4.229.1")
	left, most, full := f.cloud.Left(bucketOf(action))
	if most == 0 {
		return
	}
	h.Set("X-Ratelimit-Limit", strconv.Itoa(most))
	h.Set("X-Ratelimit-Remaining", strconv.Itoa(left))
	h.Set("X-Ratelimit-Reset", strconv.FormatInt(full.Unix(), 10))
	if left == 0 {
		h.Set("Retry-After", strconv.Itoa(max(1, int(full.Sub(f.cloud.Now()).Seconds()))))
	}
}

func (f *Front) caller(r *http.Request) (string, error) {
	instance, good := f.Bearer(r)
	if !good {
		return instance, refuse(http.StatusUnauthorized, "", "Invalid Token")
	}
	return instance, nil
}

type reason struct {
	Reason string `json:"reason"`
	Field  string `json:"field,omitempty"`
}

func refuse(status int, field, format string, args ...any) *rest.Refusal {
	return &rest.Refusal{Answer: rest.Answer{Status: status, Body: map[string]any{
		"errors": []reason{{fmt.Sprintf(format, args...), field}},
	}}}
}

func bad(field, format string, args ...any) *rest.Refusal {
	return refuse(http.StatusBadRequest, field, format, args...)
}

var errBusy = bad("", "Linode busy.")

func notFound() *rest.Refusal { return refuse(http.StatusNotFound, "", "Not found") }

// translate returns the response for an error. The code of a Fail rule is the reason of a 400.
func (f *Front) translate(err error) *rest.Refusal {
	var failed *cloud.FailedError
	switch {
	case errors.As(err, &failed) && failed.Code != "":
		return bad("", "%s", failed.Code)
	case errors.Is(err, cloud.ErrThrottled):
		refusal := refuse(http.StatusTooManyRequests, "", "Too many requests")
		refusal.Header = http.Header{"Retry-After": {"1"}}
		return refusal
	case errors.Is(err, rest.ErrNoRoute), errors.Is(err, cloud.ErrNoVolume), errors.Is(err, cloud.ErrNoInstance):
		return notFound()
	case errors.Is(err, cloud.ErrInUse):
		return bad("", "Volume is already attached")
	case errors.Is(err, cloud.ErrZoneMismatch):
		return bad("linode_id", "The Volume and the Linode must be in the same region.")
	case errors.Is(err, cloud.ErrState):
		return bad("", "Volume busy.")
	case errors.Is(err, cloud.ErrNotAttached):
		return bad("", "Volume is not attached to a Linode")
	default:
		return refuse(http.StatusInternalServerError, "", "An unexpected error occurred")
	}
}
