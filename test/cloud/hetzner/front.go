// Package hetzner simulates the Hetzner Cloud API v1 for volumes, their actions, servers and locations, and the server metadata
// service.
//
// It follows the public reference and is strict where that leaves a choice. During an action, its volume and server refuse all
// other changes, including labels. A volume shows its server from the time when an attach is accepted, as in the reference's
// example of a creation (Config.Late is the other way), until a detach has ended. An attached volume cannot be deleted, and no
// volume can be made smaller. Unknown fields and parameters are refused, and so are automount and format, which blockvol must
// never ask for.
//
// It does not simulate creating and changing servers other than their power, volumes of a server being created, and quotas other than volumes per
// server. The reference has no error codes for deleting an attached volume, detaching a detached one, another location, and a
// server's limit (here it is the one that Hetzner's own driver expects).
package hetzner

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// Config configures a front end. The cloud's zones are the locations.
type Config struct {
	Cloud *cloud.Cloud
	Most  int  // maximum number of volumes of a server; 0 is 16
	Late  bool // a volume shows its server only after the attach

	Private bool // the servers have a private network
}

// Front is the front end of Hetzner Cloud for one project. Pass Limits and ID in cloud.Config.
type Front struct {
	*rest.API
	*rest.Tokens

	cfg   Config
	cloud *cloud.Cloud

	mu       sync.Mutex // held from a check until the change
	actions  []*action
	statuses map[string]string // of servers, set by Show
}

// New returns a front end.
func New(cfg Config) *Front {
	cfg.Most = cmp.Or(cfg.Most, 16)
	f := &Front{Tokens: rest.NewTokens(tokenOf), cfg: cfg, cloud: cfg.Cloud, statuses: map[string]string{}}
	f.API = rest.New(rest.Config{Cloud: cfg.Cloud, Caller: f.caller, Translate: f.translate, Headers: f.limits})
	f.Handle("GET /v1/volumes", f.listVolumes)
	f.Handle("POST /v1/volumes", f.createVolume)
	f.Handle("GET /v1/volumes/{id}", f.getVolume)
	f.Handle("PUT /v1/volumes/{id}", f.updateVolume)
	f.Handle("DELETE /v1/volumes/{id}", f.deleteVolume)
	f.Handle("POST /v1/volumes/{id}/actions/attach", f.attach)
	f.Handle("POST /v1/volumes/{id}/actions/detach", f.detach)
	f.Handle("POST /v1/volumes/{id}/actions/resize", f.resize)
	f.Handle("POST /v1/volumes/{id}/actions/change_protection", f.changeProtection)
	f.Handle("GET /v1/volumes/{id}/actions", f.listActions)
	f.Handle("GET /v1/volumes/{id}/actions/{action}", f.getAction)
	f.Handle("GET /v1/actions", f.listActionsByID)
	f.Handle("GET /v1/actions/{action}", f.getAction)
	f.Handle("GET /v1/servers", f.listServers)
	f.Handle("GET /v1/servers/{id}", f.getServer)
	f.Handle("POST /v1/servers/{id}/actions/poweroff", f.powerOff)
	f.Handle("POST /v1/servers/{id}/actions/poweron", f.powerOn)
	f.Handle("GET /v1/locations", f.listLocations)
	return f
}

// ID is for cloud.Config.ID: numbers that JSON represents exactly.
func ID(_ cloud.Kind, n uint64) string { return strconv.FormatUint(1<<24+n>>12, 10) }

// Limits returns the limits of a project: 3,600 requests at once, and one more each second.
func Limits(string) cloud.Bucket { return cloud.Bucket{Size: 3600, PerSecond: 1} }

func tokenOf(instance string) string {
	sum := sha256.Sum256([]byte("token of " + instance))
	return hex.EncodeToString(sum[:]) // 64 characters, as Hetzner's
}

// ReadOnly makes a token read-only.
func (f *Front) ReadOnly(token string) { f.Restrict(token, "read") }

// Serial returns the serial of the volume's device in a server's kernel.
func (f *Front) Serial(volume string) string { return volume }

func (f *Front) caller(r *http.Request) (instance string, err error) {
	instance, good := f.Bearer(r)
	switch {
	case !good:
		return instance, refuse("unauthorized", "unable to authenticate")
	case r.Method != http.MethodGet && !f.May(r, "write"):
		return instance, refuse("forbidden", "insufficient permissions for this request")
	}
	return instance, nil
}

// statuses are the HTTP statuses of the API's error codes.
var statuses = map[string]int{
	"json_error": http.StatusBadRequest, "unauthorized": http.StatusUnauthorized, "forbidden": http.StatusForbidden,
	"maintenance": http.StatusForbidden, "resource_limit_exceeded": http.StatusForbidden, "protected": http.StatusForbidden,
	"token_readonly": http.StatusForbidden, "not_found": http.StatusNotFound, "method_not_allowed": http.StatusMethodNotAllowed,
	"uniqueness_error": http.StatusConflict, "conflict": http.StatusConflict, "resource_in_use": http.StatusConflict,
	"volume_already_attached": http.StatusConflict, "deprecated_api_endpoint": http.StatusGone, "resource_unavailable": http.StatusPreconditionFailed,
	"no_space_left_in_location": http.StatusPreconditionFailed, "locked": http.StatusLocked, "resource_locked": http.StatusLocked,
	"rate_limit_exceeded": http.StatusTooManyRequests, "server_error": http.StatusInternalServerError, "unsupported_error": http.StatusNotImplemented,
	"bad_gateway": http.StatusBadGateway, "unavailable": http.StatusServiceUnavailable, "timeout": http.StatusGatewayTimeout,
}

// problem is an error in an answer.
type problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Details any    `json:"details,omitempty"`
}

func refuse(code, format string, args ...any) *rest.Refusal {
	return refusal(problem{Code: code, Message: fmt.Sprintf(format, args...)})
}

func refusal(p problem) *rest.Refusal {
	status := cmp.Or(statuses[p.Code], http.StatusUnprocessableEntity)
	return &rest.Refusal{Answer: rest.Answer{Status: status, Body: map[string]any{"error": p}}}
}

// invalid returns the error for an invalid field or parameter.
func invalid(field, format string, args ...any) *rest.Refusal {
	message := fmt.Sprintf(format, args...)
	return refusal(problem{"invalid_input", fmt.Sprintf("invalid input in field '%s': %s", field, message), map[string]any{
		"fields": []any{map[string]any{"name": field, "messages": []string{message}}},
	}})
}

func notFound(kind, id string) *rest.Refusal {
	return refuse("not_found", "%s with ID '%s' not found", kind, id)
}

func locked(kind string) *rest.Refusal {
	return refuse("locked", "cannot perform operation because %s is locked", kind)
}

// translate returns the response for an error. The code of a Fail rule is one of the API's and optionally a message.
func (f *Front) translate(err error) *rest.Refusal {
	var failed *cloud.FailedError
	switch {
	case errors.As(err, &failed):
		code, message, _ := strings.Cut(cmp.Or(failed.Code, "server_error"), " ")
		return refuse(code, "%s", cmp.Or(message, "an error occurred"))
	case errors.Is(err, cloud.ErrThrottled):
		return refuse("rate_limit_exceeded", "limit of 3600 requests per hour reached")
	case errors.Is(err, rest.ErrNoRoute):
		return refuse("not_found", "route not found")
	case errors.Is(err, cloud.ErrNoVolume):
		return refuse("not_found", "volume not found")
	case errors.Is(err, cloud.ErrState):
		return locked("volume")
	}
	return refuse("server_error", "an error occurred: %v", err)
}

// limits adds the rate limit headers, which are per hour.
func (f *Front) limits(h http.Header, _ string) {
	left, most, full := f.cloud.Left(rest.Account)
	if most == 0 {
		return
	}
	h.Set("Ratelimit-Limit", strconv.Itoa(most))
	h.Set("Ratelimit-Remaining", strconv.Itoa(left))
	h.Set("Ratelimit-Reset", strconv.FormatInt(full.Add(time.Second-1).Unix(), 10))
}

// decode decodes a body.
func decode(r *rest.Request, into any) error {
	if err := r.Decode(into); err != nil {
		return refuse("json_error", "invalid JSON: %v", err)
	}
	return nil
}

// Transport connects an instance's clients without sockets, see httpsim.InstanceTransport.
func (f *Front) Transport(instance string) http.RoundTripper {
	return httpsim.InstanceTransport(f, f.Metadata(instance))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05+00:00") }

func number(id string) int64 {
	n, _ := strconv.ParseInt(id, 10, 64) // as ID makes it
	return n
}
