// Package digitalocean simulates the DigitalOcean API v2 for volumes, their actions, snapshots and tags, and for droplets, and
// the droplet metadata service.
//
// It follows the public reference and is strict where that leaves a choice. During an action, droplet_ids is empty: a volume
// being attached or detached looks detached (Config.Early is the other way). The droplet and the volume then refuse all other
// actions. The size is ignored when a volume is created from a snapshot. Tags that a token may not read are not shown. A tag
// must exist before it is used, and keeps the capitals of its creator.
//
// It does not simulate creating droplets, moving volumes between regions, actions by a volume's name, tags in actions, file
// systems made by DigitalOcean, projects, and quotas other than volumes per droplet.
package digitalocean

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

// Config configures a front end. The cloud's zones are the regions.
type Config struct {
	Cloud   *cloud.Cloud
	Most    int  // maximum number of volumes of a droplet; 0 is 7
	Volumes int  // maximum number of volumes of the account, as it is shown; 0 is 100
	Early   bool // droplet_ids shows the droplet from the beginning of an attach to the end of a detach
}

// Front is the front end of DigitalOcean for one account. Pass Limits and ID in cloud.Config.
type Front struct {
	*rest.API
	*rest.Tokens

	cfg   Config
	cloud *cloud.Cloud

	mu       sync.Mutex // held from a check until the change
	requests int
	tags     map[string]string // all tags, by their lower-case name
	actions  []*action
}

// New returns a front end.
func New(cfg Config) *Front {
	cfg.Most, cfg.Volumes = cmp.Or(cfg.Most, 7), cmp.Or(cfg.Volumes, 100)
	f := &Front{Tokens: rest.NewTokens(tokenOf), cfg: cfg, cloud: cfg.Cloud, tags: map[string]string{}}
	f.API = rest.New(rest.Config{Cloud: cfg.Cloud, Caller: f.caller, Translate: f.translate, Headers: f.limits})
	f.handle("GET /v2/volumes", "block_storage:read", f.listVolumes)
	f.handle("POST /v2/volumes", "block_storage:create", f.createVolume)
	f.handle("GET /v2/volumes/{id}", "block_storage:read", f.getVolume)
	f.handle("DELETE /v2/volumes/{id}", "block_storage:delete", f.deleteVolume)
	f.handle("POST /v2/volumes/{id}/actions", "block_storage_action:create", f.act)
	f.handle("GET /v2/volumes/{id}/actions", "block_storage_action:read", f.listActions)
	f.handle("GET /v2/volumes/{id}/actions/{action}", "block_storage_action:read", f.getAction)
	f.handle("GET /v2/actions/{action}", "actions:read", f.getAction)
	f.handle("POST /v2/volumes/{id}/snapshots", "block_storage_snapshot:create", f.createSnapshot)
	f.handle("GET /v2/volumes/{id}/snapshots", "block_storage_snapshot:read", f.listSnapshotsOf)
	// The reference does not say which of the two kinds of scopes the paths of all snapshots need for a volume's.
	f.handle("GET /v2/snapshots", "snapshot:read block_storage_snapshot:read", f.listSnapshots)
	f.handle("GET /v2/snapshots/{id}", "snapshot:read block_storage_snapshot:read", f.getSnapshot)
	f.handle("DELETE /v2/snapshots/{id}", "snapshot:delete block_storage_snapshot:delete", f.deleteSnapshot)
	f.handle("POST /v2/tags", "tag:create", f.createTag)
	f.handle("GET /v2/tags/{tag}", "tag:read", f.getTag)
	f.handle("POST /v2/tags/{tag}/resources", "tag:create", f.tagResources)
	f.handle("DELETE /v2/tags/{tag}/resources", "tag:delete", f.untagResources)
	f.handle("GET /v2/droplets/{id}", "droplet:read", f.getDroplet)
	f.handle("POST /v2/droplets/{id}/actions", "droplet:update", f.power)
	f.handle("GET /v2/droplets/{id}/actions", "droplet:read", f.listPower)
	f.handle("GET /v2/account", "account:read", f.getAccount)
	return f
}

// ServeHTTP implements http.Handler. A trailing slash in the path is ignored.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if path, slash := strings.CutSuffix(r.URL.Path, "/"); slash {
		r = r.Clone(r.Context())
		r.URL.Path = path
	}
	f.API.ServeHTTP(w, r)
}

// handle adds a route that needs scopes.
func (f *Front) handle(pattern, scopes string, do func(*rest.Request) (rest.Answer, error)) {
	f.Handle(pattern, func(r *rest.Request) (rest.Answer, error) {
		for _, scope := range strings.Fields(scopes) {
			if !f.May(r.HTTP, scope) {
				return rest.Answer{}, f.refuse(http.StatusForbidden, "You are not authorized to perform this operation")
			}
		}
		return do(r)
	})
}

// ID is for cloud.Config.ID: numbers for droplets, UUIDs for all else.
func ID(of cloud.Kind, n uint64) string {
	if of == cloud.AnInstance {
		return strconv.FormatUint(1<<28+n>>12, 10)
	}
	return fmt.Sprintf("%08x-%04x-11f0-%04x-0a58ac14d0e5", n>>32, n>>16&0xffff, n&0xffff)
}

// Limits returns the limits of a token: 250 requests at once, and 5,000 per hour.
func Limits(string) cloud.Bucket { return cloud.Bucket{Size: 250, PerSecond: 5000. / 3600} }

func tokenOf(instance string) string {
	sum := sha256.Sum256([]byte("token of " + instance))
	return "dop_v1_" + hex.EncodeToString(sum[:])
}

func (f *Front) caller(r *http.Request) (instance string, err error) {
	instance, good := f.Bearer(r)
	if !good {
		return instance, f.refuse(http.StatusUnauthorized, "Unable to authenticate you.")
	}
	return instance, nil
}

// ids are DigitalOcean's error IDs by HTTP status.
var ids = map[int]string{
	http.StatusBadRequest: "bad_request", http.StatusUnauthorized: "unauthorized", http.StatusForbidden: "forbidden",
	http.StatusNotFound: "not_found", http.StatusConflict: "conflict", http.StatusUnprocessableEntity: "unprocessable_entity",
	http.StatusTooManyRequests: "too_many_requests", http.StatusServiceUnavailable: "service_unavailable",
}

// failure is the body of an error response.
type failure struct {
	ID        string `json:"id"`
	Message   string `json:"message"`
	RequestID string `json:"request_id"`
}

func (f *Front) refuse(status int, format string, args ...any) *rest.Refusal {
	f.mu.Lock()
	f.requests++
	sum := sha256.Sum256([]byte("request " + strconv.Itoa(f.requests)))
	f.mu.Unlock()
	return &rest.Refusal{Answer: rest.Answer{Status: status, Body: failure{
		ID: cmp.Or(ids[status], "server_error"), Message: fmt.Sprintf(format, args...),
		RequestID: httpsim.UUID(sum[:16]),
	}}}
}

func (f *Front) notFound() *rest.Refusal {
	return f.refuse(http.StatusNotFound, "The resource you requested could not be found.")
}

func (f *Front) invalid(format string, args ...any) *rest.Refusal {
	return f.refuse(http.StatusUnprocessableEntity, format, args...)
}

// pending returns the error for a request during an action.
func (f *Front) pending(of string) *rest.Refusal {
	return f.invalid("%s already has a pending event.", of)
}

// translate returns the response for an error. The code of a Fail rule is an HTTP status and optionally a message.
func (f *Front) translate(err error) *rest.Refusal {
	var failed *cloud.FailedError
	switch {
	case errors.As(err, &failed):
		code, message, _ := strings.Cut(failed.Code, " ")
		status, err := strconv.Atoi(code)
		if err != nil {
			status = http.StatusInternalServerError
		}
		return f.refuse(status, "%s", cmp.Or(message, "Unexpected server-side error"))
	case errors.Is(err, cloud.ErrThrottled):
		r := f.refuse(http.StatusTooManyRequests, "API Rate limit exceeded.")
		r.Header = http.Header{"Retry-After": {"1"}}
		return r
	case errors.Is(err, rest.ErrNoRoute), errors.Is(err, cloud.ErrNoVolume), errors.Is(err, cloud.ErrNoInstance), errors.Is(err, cloud.ErrNoSnapshot):
		return f.notFound()
	case errors.Is(err, cloud.ErrState):
		return f.pending("Volume")
	case errors.Is(err, cloud.ErrZoneMismatch):
		return f.invalid("The volume and the Droplet must be in the same region.")
	}
	return f.refuse(http.StatusInternalServerError, "Unexpected server-side error")
}

// limits adds the rate limit headers. The reset is the time of the next allowed request if none is left.
func (f *Front) limits(h http.Header, _ string) {
	left, most, full := f.cloud.Left(rest.Account)
	if most == 0 {
		return
	}
	reset := f.cloud.Now()
	if missing := most - left; missing > 0 {
		reset = reset.Add(full.Sub(reset) / time.Duration(missing))
	}
	h.Set("Ratelimit-Limit", strconv.Itoa(most))
	h.Set("Ratelimit-Remaining", strconv.Itoa(left))
	h.Set("Ratelimit-Reset", strconv.FormatInt(reset.Add(time.Second-1).Unix(), 10))
}

// decode decodes a body.
func (f *Front) decode(r *rest.Request, into any) error {
	if err := r.Decode(into); err != nil {
		return f.refuse(http.StatusBadRequest, "error parsing request body: %v", err)
	}
	return nil
}

// Transport connects an instance's clients without sockets, see httpsim.InstanceTransport.
func (f *Front) Transport(instance string) http.RoundTripper {
	return httpsim.InstanceTransport(f, f.Metadata(instance))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
