// Package openstack simulates an OpenStack cloud: Keystone v3 for tokens, Cinder v3 for volumes and snapshots, Nova v2.1 for
// servers and attachments, under the paths /identity, /volume and /compute of one host, and the server metadata service.
//
// It follows the API references, and the services' own behaviour where they are silent. Where clouds differ, it takes the
// stricter way: unknown fields and filters are refused, names are not unique, volumes have times in whole seconds, metadata
// filters ignore case, texts cannot have four-byte characters (many clouds' databases refuse them), a full page always has a
// next one, a volume being attached does not show its server, and a volume with snapshots cannot be deleted.
//
// It does not simulate launching servers, several projects and roles, images, groups, backups, transfers, retyping, volumes
// shared by servers, and microversions other than those that the calls here need.
package openstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// Config configures a front end. Only Cloud is required.
type Config struct {
	Cloud         *cloud.Cloud
	Region        string                 // default RegionOne
	TokenLife     time.Duration          // default an hour
	Now           func() time.Time       // clock of the cloud; default Cloud.Now
	Types         []string               // volume types, the default first; default __DEFAULT__
	Devices       int                    // maximum number of volumes of a server; default 26
	Gigabytes     int64                  // quota of the project in GiB; default 1000
	Unmakeable    func(name string) bool // reports whether a volume is accepted but then ends in state error; may be nil
	VolumeZone    string                 // Cinder's name of the first zone; default as in Nova
	NoAttachments bool                   // old Cinder without microversion 3.27
	NoDate        bool                   // responses have no Date header, as without a web server in front of the services
	Multiattach   []string               // multiattach types, which the calls here do not ask Nova for
	Settles       time.Duration          // how long Nova still lists an attachment that Cinder has ended; default 300 ms
}

// Front is the front end of one region for one project. Each instance has its own account, see Credentials.
type Front struct {
	cfg   Config
	cloud *cloud.Cloud
	api   *rest.API

	mu       sync.Mutex
	tokens   map[string]token
	issued   int
	missing  map[string]bool // services that are not in the catalogue
	revoked  map[string]bool // instances whose credentials are revoked
	page     int
	listed   map[string]string // by volume: the server that Nova wrongly lists it for
	statuses map[string]status // server statuses set by SetStatus

	forbidden, locked map[string]bool // by instance, see Forbid and Lock
	power             map[string]int  // power states of servers set by SetPower
}

// Project and User identify all instances in Keystone.
const (
	Project = "6f70656c0fd84a1e9c1d2c7c6d9f3b5a"
	User    = "a3f5e2c19b7d4c0e8f6a5b4c3d2e1f00"
)

// New returns a front end.
func New(cfg Config) *Front {
	if cfg.Region == "" {
		cfg.Region = "RegionOne"
	}
	if cfg.TokenLife == 0 {
		cfg.TokenLife = time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = cfg.Cloud.Now
	}
	if cfg.Types == nil {
		cfg.Types = []string{"__DEFAULT__"}
	}
	if cfg.Devices == 0 {
		cfg.Devices = 26
	}
	if cfg.Gigabytes == 0 {
		cfg.Gigabytes = 1000
	}
	if cfg.Settles == 0 {
		cfg.Settles = 300 * time.Millisecond
	}
	f := &Front{cfg: cfg, cloud: cfg.Cloud, tokens: map[string]token{}, missing: map[string]bool{}, revoked: map[string]bool{}, statuses: map[string]status{}, listed: map[string]string{}, page: 1000, forbidden: map[string]bool{}, locked: map[string]bool{}, power: map[string]int{}}
	f.api = rest.New(rest.Config{Cloud: cfg.Cloud, Caller: f.caller, Translate: translate, Headers: func(h http.Header, _ string) {
		h.Set("X-Openstack-Request-Id", "req-00000000-0000-4000-8000-000000000000")
		h.Set("Date", f.cfg.Now().UTC().Format(http.TimeFormat))
		if f.cfg.NoDate {
			h["Date"] = nil // otherwise net/http adds it
		}
	}})
	f.api.Handle("POST /identity/v3/auth/tokens", f.issue)
	f.api.Handle("GET /identity/v3", version("/identity/v3/", one, map[string]any{"id": "v3.14", "status": "stable"}))
	f.api.Handle("GET /image", version("/image/v2/", many, map[string]any{"id": "v2.9", "status": "CURRENT"}))
	f.api.Handle("GET /compute/v2.1", version("/compute/v2.1/", one, map[string]any{
		"id": "v2.1", "status": "CURRENT", "min_version": "2.1", "version": fmt.Sprintf("2.%d", maxNova),
	}))
	f.api.Handle("GET /volume/v3/{$}", version("/volume/v3/", many, map[string]any{
		"id": "v3.0", "status": "CURRENT", "min_version": "3.0", "version": fmt.Sprintf("3.%d", f.maxCinder()),
	}))
	for pattern, do := range map[string]func(*rest.Request) (rest.Answer, error){
		"GET /volume/v3/{project}/volumes/detail":                 f.listVolumes,
		"GET /volume/v3/{project}/volumes":                        f.listVolumes,
		"POST /volume/v3/{project}/volumes":                       f.createVolume,
		"GET /volume/v3/{project}/volumes/{id}":                   f.showVolume,
		"DELETE /volume/v3/{project}/volumes/{id}":                f.deleteVolume,
		"POST /volume/v3/{project}/volumes/{id}/action":           f.act,
		"POST /volume/v3/{project}/volumes/{id}/metadata":         f.addMetadata,
		"DELETE /volume/v3/{project}/volumes/{id}/metadata/{key}": f.dropMetadata,
		"GET /volume/v3/{project}/attachments/detail":             f.listAttachments,
		"GET /volume/v3/{project}/snapshots/detail":               f.listSnapshots,
		"GET /volume/v3/{project}/limits":                         f.limits,
		"POST /volume/v3/{project}/snapshots":                     f.createSnapshot,
		"GET /volume/v3/{project}/snapshots/{id}":                 f.showSnapshot,
		"DELETE /volume/v3/{project}/snapshots/{id}":              f.deleteSnapshot,
	} {
		f.api.Handle(pattern, func(r *rest.Request) (rest.Answer, error) {
			if r.HTTP.PathValue("project") != Project {
				return rest.Answer{}, bad("Malformed request url")
			}
			if err := checkMicroversion(r, "volume", 3, 0, f.maxCinder()); err != nil {
				return rest.Answer{}, err
			}
			return do(r)
		})
	}
	for pattern, do := range map[string]func(*rest.Request) (rest.Answer, error){
		"GET /compute/v2.1/servers/detail":                                     f.listServers,
		"GET /compute/v2.1/servers/{server}/os-volume_attachments":             f.listServerAttachments,
		"GET /compute/v2.1/servers/{server}":                                   f.showServer,
		"POST /compute/v2.1/servers/{server}/action":                           f.actOnServer,
		"POST /compute/v2.1/servers/{server}/os-volume_attachments":            f.attach,
		"GET /compute/v2.1/servers/{server}/os-volume_attachments/{volume}":    f.showAttachment,
		"DELETE /compute/v2.1/servers/{server}/os-volume_attachments/{volume}": f.detach,
	} {
		f.api.Handle(pattern, func(r *rest.Request) (rest.Answer, error) {
			if err := checkMicroversion(r, "compute", 2, 1, maxNova); err != nil {
				return rest.Answer{}, err
			}
			return do(r)
		})
	}
	return f
}

// Limits returns no limits: in OpenStack the operator sets them.
func Limits(string) cloud.Bucket { return cloud.Bucket{} }

// ID is for cloud.Config.ID: UUIDs.
func ID(of cloud.Kind, n uint64) string { return uuid(fmt.Sprintf("%s %d", of, n)) }

// uuid returns a UUID, version 4, which depends on the text only.
func uuid(text string) string {
	sum := sha256.Sum256([]byte(text))
	sum[6], sum[8] = sum[6]&0x0f|0x40, sum[8]&0x3f|0x80
	return httpsim.UUID(sum[:16])
}

// Serial returns the serial of a volume's device in the kernel: virtio limits it to 20 characters.
func Serial(volume string) string { return volume[:min(len(volume), 20)] }

// ServeHTTP implements http.Handler, see rest.API.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == authPath { // the body has the credentials
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r = r.WithContext(context.WithValue(r.Context(), claimed{}, body))
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	f.api.ServeHTTP(w, r)
}

// refuse returns an error in the format of Cinder and Nova.
func refuse(status int, kind, format string, args ...any) *rest.Refusal {
	return &rest.Refusal{Answer: rest.Answer{Status: status, Body: map[string]any{
		kind: map[string]any{"code": status, "message": fmt.Sprintf(format, args...)},
	}}}
}

func bad(format string, args ...any) *rest.Refusal {
	return refuse(http.StatusBadRequest, "badRequest", format, args...)
}

func missing(format string, args ...any) *rest.Refusal {
	return refuse(http.StatusNotFound, "itemNotFound", format, args...)
}

func conflict(format string, args ...any) *rest.Refusal {
	return refuse(http.StatusConflict, "conflictingRequest", format, args...)
}

// overQuota returns a quota error. It has status 413 and a Retry-After that does not help.
func overQuota(format string, args ...any) *rest.Refusal {
	refusal := refuse(http.StatusRequestEntityTooLarge, "overLimit", format, args...)
	refusal.Header = http.Header{"Retry-After": {"0"}}
	return refusal
}

func translate(err error) *rest.Refusal {
	var failed *cloud.FailedError
	switch {
	case errors.Is(err, cloud.ErrThrottled):
		refusal := refuse(http.StatusTooManyRequests, "overLimit", "This request was rate-limited.")
		refusal.Header = http.Header{"Retry-After": {"1"}}
		return refusal
	case errors.As(err, &failed):
		if status, err := strconv.Atoi(failed.Code); err == nil {
			return refuse(status, "fault", "Made to fail")
		}
		return refuse(http.StatusInternalServerError, "computeFault", "Unexpected API Error. Please report this at http://bugs.launchpad.net/nova/ and attach the Nova API log if possible.")
	case errors.Is(err, rest.ErrNoRoute):
		return missing("The resource could not be found.")
	case errors.Is(err, cloud.ErrNoVolume):
		return missing("Volume could not be found.")
	default:
		return bad("%v", err)
	}
}

// decode decodes a body with one key.
func decode[T any](r *rest.Request, key string) (T, error) {
	body := map[string]json.RawMessage{}
	var value T
	err := r.Decode(&body)
	if err == nil && (len(body) != 1 || body[key] == nil) {
		err = fmt.Errorf("the body must have the field %q only", key)
	}
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(body[key]))
		d.DisallowUnknownFields()
		err = d.Decode(&value)
	}
	if err != nil {
		return value, bad("Invalid input for field/attribute %s: %v", key, err)
	}
	return value, nil
}

// The latest microversions: 2.x of Nova, 3.x of Cinder, and of an old Cinder.
const (
	maxNova      = 96
	maxCinder    = 71
	maxOldCinder = 26
)

func (f *Front) maxCinder() int {
	if f.cfg.NoAttachments {
		return maxOldCinder
	}
	return maxCinder
}

// Keys of a version and of a list of versions.
const one, many = "version", "versions"

// version returns the handler for the version of a service at a path.
func version(path, key string, v map[string]any) func(*rest.Request) (rest.Answer, error) {
	return func(r *rest.Request) (rest.Answer, error) {
		v := maps.Clone(v)
		v["links"] = []map[string]any{{"rel": "self", "href": "http://" + r.HTTP.Host + path}}
		body := map[string]any{key: v}
		if key == many {
			body[key] = []any{v}
		}
		return rest.Answer{Status: http.StatusOK, Body: body}, nil
	}
}

// asked returns the microversion that a request asks for, if any, of a service with this major version.
func asked(r *rest.Request, service string, major int) (minor int, ok bool) {
	text, ok := strings.CutPrefix(r.HTTP.Header.Get("OpenStack-API-Version"), fmt.Sprintf("%s %d.", service, major))
	if !ok && service == "compute" { // the older header
		text, ok = strings.CutPrefix(r.HTTP.Header.Get("X-OpenStack-Nova-API-Version"), fmt.Sprintf("%d.", major))
	}
	minor, err := strconv.Atoi(text)
	return minor, ok && err == nil
}

// checkMicroversion refuses a microversion that the service does not have.
func checkMicroversion(r *rest.Request, service string, major, least, most int) error {
	minor, ok := asked(r, service, major)
	if ok && (minor < least || minor > most) {
		return refuse(http.StatusNotAcceptable, "computeFault", "Version %d.%d is not supported by the API. Minimum is %d.%d and maximum is %d.%d.", major, minor, major, least, major, most)
	}
	return nil
}

// microversion reports whether the request asks for at least this microversion of Cinder.
func microversion(r *rest.Request, least int) bool {
	minor, ok := asked(r, "volume", 3)
	return ok && minor >= least
}

// stamp formats a time: without a zone.
func stamp(t time.Time) string {
	return t.UTC().Truncate(time.Second).Format("2006-01-02T15:04:05.000000")
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}
