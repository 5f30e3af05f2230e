// Package digitalocean is the front of package cloud that speaks as DigitalOcean does: version 2 of its API, as far as it is
// about block storage volumes, their actions, snapshots and tags, and about droplets; and each droplet's metadata service.
//
// It keeps the rules of the public reference, and is the stricter one where that leaves something open. While an action is
// under way, droplet_ids shows nothing of it: a volume that is being attached, or detached, is shown as if it were free (see
// Config.Early for the other way). Droplet and volume then refuse every other action. The size in a request to create a
// volume from a snapshot is ignored. What a token may not read of tags is not shown. A tag must exist before it is given, and
// be named in the capitals of its maker.
//
// It does not simulate making droplets, moving volumes between regions, actions by a volume's name, tags in actions, file
// systems that DigitalOcean makes, projects, and quotas other than of volumes on a droplet.
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

// Config is what is DigitalOcean's own about a cloud, whose zones are its regions.
type Config struct {
	Cloud *cloud.Cloud
	Most  int  // volumes on one droplet; 0 is 7
	Early bool // droplet_ids shows a droplet from the beginning of an attach until the end of a detach
}

// Front is DigitalOcean, seen by one account. Configure its limits with Limits, its ids with ID.
type Front struct {
	*rest.API
	*rest.Tokens

	cfg   Config
	cloud *cloud.Cloud

	mu       sync.Mutex // held over what looks before it acts
	requests int
	tags     map[string]string // all that were ever given, by their small letters
	actions  []*action
}

// New returns a front.
func New(cfg Config) *Front {
	cfg.Most = cmp.Or(cfg.Most, 7)
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
	// Which of both kinds the paths of all snapshots take for one of a volume, the reference leaves open.
	f.handle("GET /v2/snapshots", "snapshot:read block_storage_snapshot:read", f.listSnapshots)
	f.handle("GET /v2/snapshots/{id}", "snapshot:read block_storage_snapshot:read", f.getSnapshot)
	f.handle("DELETE /v2/snapshots/{id}", "snapshot:delete block_storage_snapshot:delete", f.deleteSnapshot)
	f.handle("POST /v2/tags", "tag:create", f.createTag)
	f.handle("POST /v2/tags/{tag}/resources", "tag:create", f.tagResources)
	f.handle("DELETE /v2/tags/{tag}/resources", "tag:delete", f.untagResources)
	f.handle("GET /v2/droplets/{id}", "droplet:read", f.getDroplet)
	return f
}

// ServeHTTP takes a path that ends in a slash for the same path without it.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if path, slash := strings.CutSuffix(r.URL.Path, "/"); slash {
		r = r.Clone(r.Context())
		r.URL.Path = path
	}
	f.API.ServeHTTP(w, r)
}

// handle adds a route that takes scopes.
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

// ID is for cloud.Config.ID: numbers for droplets, UUIDs for the rest.
func ID(of cloud.Kind, n uint64) string {
	if of == cloud.AnInstance {
		return strconv.FormatUint(1<<28+n>>12, 10)
	}
	return fmt.Sprintf("%08x-%04x-11f0-%04x-0a58ac14d0e5", n>>32, n>>16&0xffff, n&0xffff)
}

// Limits are those of one token: 250 requests at once, and 5,000 in each hour.
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

// ids are DigitalOcean's words for statuses.
var ids = map[int]string{
	http.StatusBadRequest: "bad_request", http.StatusUnauthorized: "unauthorized", http.StatusForbidden: "forbidden",
	http.StatusNotFound: "not_found", http.StatusConflict: "conflict", http.StatusUnprocessableEntity: "unprocessable_entity",
	http.StatusTooManyRequests: "too_many_requests", http.StatusServiceUnavailable: "service_unavailable",
}

// failure is the body of an error.
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

// pending refuses what comes while something is under way.
func (f *Front) pending(of string) *rest.Refusal {
	return f.invalid("%s already has a pending event.", of)
}

// translate words what package cloud refuses. The code of a rule that makes a call fail is a status, and perhaps a message
// after it.
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

// limits adds what is left of the limit. Its reset is when the next request is allowed, if none is.
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

// decode reads a body.
func (f *Front) decode(r *rest.Request, into any) error {
	if err := r.Decode(into); err != nil {
		return f.refuse(http.StatusBadRequest, "error parsing request body: %v", err)
	}
	return nil
}

// Transport returns what connects the clients of one instance without sockets, see httpsim.InstanceTransport.
func (f *Front) Transport(instance string) http.RoundTripper {
	return httpsim.InstanceTransport(f, f.Metadata(instance))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
