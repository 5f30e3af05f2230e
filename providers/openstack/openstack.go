// Package openstack keeps volumes in Cinder, the block storage of OpenStack, and attaches them through Nova.
//
// # What is trusted
//
// Nova and Cinder decide who holds a volume: Cinder reserves it for one server in one step when Nova is asked to attach it, and
// a detach names the server, so it never takes a volume from another. Reads come from the database that the writes went to,
// and are taken for the truth; the making of a volume alone, which rests on what several nodes read of each other, allows for
// reads that are seconds old, as of a cluster of databases: see below.
//
// Whether a token is good, the services tell: one that is refused is replaced once, whatever this node's clock says.
//
// # What it costs
//
// A mount of an existing volume is one list of Cinder, filtered by the name's digest, and one attach of Nova; an unmount one
// detach. Questions for several volumes that come while a call is under way share the next one, which then is a list of the
// cluster's volumes. A volume on its way to a server costs one more, as a volume does not show where it goes.
//
// # How a volume is known
//
// By its metadata, which Cinder keeps whole: see tags.go. Cinder's own name of it is for people. A disk is recognised by
// its serial, which is the volume's id; virtio shows the first 20 characters. The device that Nova names is a guess.
//
// # How one name has one volume
//
// Names are not unique in Cinder, and it has nothing by which to compare and set. So a volume is made in steps:
//
//  1. A node that finds no volume of the name makes a candidate: a volume with the name, the state "claimed" and its
//     maker, which is a process. Nobody takes a candidate for a volume, so it never holds data.
//  2. After as long as a read may be old, the maker lists all that have the name. If one of them is settled, or a candidate with
//     a lower id, it deletes its own. If there is a candidate with a higher id, it waits for what becomes of that. Otherwise it
//     settles its own: that one write makes it the volume of the name.
//
// Cinder deletes nothing that it is still making. So the maker first gives such a candidate the state "withdrawn", for which nobody
// waits.
//
// Two candidates are never both settled. The maker of the one that was made later lists so long after that the list shows the
// other one, since a read is not older than lag: it waits until that is gone, or gives way to it. No clock of the cloud's, and no
// two clocks at once, are needed for that.
//
// A maker may die. A candidate whose maker has not settled it within its life, counted from when it was asked for, is never
// settled: the maker deletes it instead, and sends no write that could take effect later than patience. So another process that
// has seen the candidate for that long goes on without it, and so does one that sees from the cloud's clock that it is an hour
// old. Such an orphan is an empty disk that nobody uses. Its maker removes it when it creates the name again, and Delete does
// with the volume of the name, since a volume may be deleted by its maker in Create, and in Delete, but nowhere else. If a
// process is stopped for minutes between two instructions of step 2, so that all this fails, two volumes are settled: then
// nothing is deleted, and every call says that the name is ambiguous.
//
// What a maker deletes was never settled, and it settles nothing that it has begun to delete; no other process settles it. If
// the request to settle was not answered, it deletes nothing as long as that may still be carried out; and after one that was
// carried out, nothing as long as a read may not show that. So a late or repeated deletion cannot meet a volume that holds data. A candidate is settled when Cinder has made it, or after half its life: what
// Cinder cannot make afterwards is settled, and for the operator to delete.
package openstack

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/snapshots"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
	"github.com/blockvol/blockvol/providers/keymutex"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/metadata"
	"github.com/blockvol/blockvol/providers/rest"
	"github.com/blockvol/blockvol/providers/sanitize"
	"github.com/blockvol/blockvol/providers/secret"
)

const (
	cloudName       = "OpenStack"
	serverSetting   = "OS_INSTANCE_ID"
	defaultMetadata = "http://169.254.169.254/openstack/latest/meta_data.json"
)

// Config is what a Provider needs to know.
type Config struct {
	Cluster   string
	Auth      gophercloud.AuthOptions // whose credentials, without the secret
	Secret    *secret.Secret          // the password, or the application credential's secret
	Region    string                  // default: the first in the catalogue
	Interface string                  // of the services: public, internal or admin; default public
	Server    string                  // the id of this server; default: the word of its metadata service
	Metadata  string                  // URL of that service's document
	Transport http.RoundTripper       // to the cloud; default: that of package rest
	Neighbour *http.Client            // for the metadata service; default: that of package metadata
	Log       logrus.FieldLogger      // may be nil
	Observe   providers.Observer      // told of each request; may be nil

	settings string // that name the credentials, for errors
}

// Provider is an OpenStack cloud as seen from one server. It keeps the contract of providers.Provider, Snapshotter and Modifier.
type Provider struct {
	*managed.Provider[volume]
	*managed.Snapshots[volume, snapshots.Snapshot]
	cfg     Config
	cluster string
	maker   string // this process, as the maker of volumes
	times   times
	way     *rest.Client

	session *batch.Cached[*session]
	self    *metadata.Identity
	names   keymutex.KeyMutex // creates of one name, one at a time

	mu        sync.Mutex
	spent     string               // the token before
	sent      map[string]time.Time // by name: when this process last asked for a volume of it
	withdrawn map[string]bool      // by id: candidates that this process has begun to delete
	doubts    map[string]time.Time // by id: when a request that settles a candidate was not answered
	told      map[string]bool      // by id: orphans that the operator has been told of
	seen      map[string]time.Time // by id: when this process first saw a candidate of another's
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)
)

// New checks the configuration. It calls nobody.
func New(cfg Config) (*Provider, error) {
	if cfg.Interface == "" {
		cfg.Interface = "public"
	}
	if cfg.Metadata == "" {
		cfg.Metadata = defaultMetadata
	}
	if cfg.settings == "" {
		cfg.settings = "the credentials"
	}
	switch {
	case cfg.Cluster == "":
		return nil, fmt.Errorf("%w: the name of the cluster is empty: set CLUSTER", providers.ErrInvalid)
	case len(cfg.Cluster) > 255:
		return nil, fmt.Errorf("%w: the name of the cluster has %d bytes: set CLUSTER to one of up to 255", providers.ErrInvalid, len(cfg.Cluster))
	case !strings.HasPrefix(cfg.Auth.IdentityEndpoint, "http://") && !strings.HasPrefix(cfg.Auth.IdentityEndpoint, "https://"):
		return nil, fmt.Errorf("%w: OS_AUTH_URL is %q: set it to the URL of Keystone, such as https://keystone.example.com:5000/v3", providers.ErrInvalid, cfg.Auth.IdentityEndpoint)
	case cfg.Secret == nil:
		return nil, fmt.Errorf("%w: there is neither a password nor an application credential", providers.ErrInvalid)
	case cfg.Interface != "public" && cfg.Interface != "internal" && cfg.Interface != "admin":
		return nil, fmt.Errorf("%w: OS_INTERFACE is %q: it can be public, internal or admin", providers.ErrInvalid, cfg.Interface)
	case cfg.Server != "" && !isUUID(cfg.Server):
		return nil, fmt.Errorf("%w: %s is %q: a server's id looks like 2f1c5b9e-8d3a-4b7e-9c6d-1a2b3c4d5e6f", providers.ErrInvalid, serverSetting, cfg.Server)
	}
	p := &Provider{
		cfg: cfg, cluster: cfg.Cluster, maker: rand.Text(), times: usual,
		sent:      make(map[string]time.Time),
		withdrawn: make(map[string]bool), doubts: make(map[string]time.Time), told: make(map[string]bool), seen: make(map[string]time.Time),
	}
	p.way = rest.New(rest.Config{
		Cloud: cloudName, Endpoint: "OS_AUTH_URL", Secrets: p.secrets, Transport: cfg.Transport, Observe: cfg.Observe, Repeatable: repeatable,
	})
	p.session = batch.Cache("for a token of "+cloudName, p.login)
	p.self = metadata.NewIdentity("server", serverSetting, cfg.Server, p.identify)
	p.Provider = managed.New(managed.Cloud[volume]{
		Name: cloudName, Machine: "server", StopWord: "stop", Cluster: cfg.Cluster,
		Options: []string{"snapshot", "tags", "type", "zone"}, // encryption is a matter of the type
		Buses:   []string{"scsi", "virtio"}, Sizes: sizes,
		Unname: "the name (openstack volume unset --property " + keyDigest + ")",
		IDForm: "which looks like 2f1c5b9e-8d3a-4b7e-9c6d-1a2b3c4d5e6f", IsID: isUUID, IsNode: isUUID,
		MarksAlone: true, ShowsOperations: true, Queue: managed.QueuedWhenBusy, Attach: p.attach, Detach: p.detach,
		// There is no zone: those of Cinder have names of their own, and at most clouds any server can have any volume.
		Self: p.self.Node, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: maxNames, All: p.all, Get: p.get, Settle: p.settled,
		CheckSpec: checkSpec, Mark: p.mark, Claim: p.claim, Release: p.release, Delete: p.remove, Resize: p.extend,
	})
	p.Snapshots = managed.NewSnapshots(p.Provider, p.snapshots())
	return p, nil
}

// FromEnv is New with the environment's settings, under the names that OpenStack's own tools have for them. The node's own id is
// not used: a server has one.
func FromEnv(getenv func(string) string, _, cluster string, log logrus.FieldLogger, observe providers.Observer) (providers.Provider, error) {
	cfg := Config{
		Cluster: cluster, Region: getenv("OS_REGION_NAME"), Interface: strings.TrimSuffix(getenv("OS_INTERFACE"), "URL"),
		Server: getenv(serverSetting), Metadata: getenv("OS_METADATA_URL"), Log: log, Observe: observe,
	}
	cfg.Auth = gophercloud.AuthOptions{
		IdentityEndpoint: getenv("OS_AUTH_URL"), Username: getenv("OS_USERNAME"),
		DomainID: getenv("OS_USER_DOMAIN_ID"), DomainName: getenv("OS_USER_DOMAIN_NAME"),
		ApplicationCredentialID: getenv("OS_APPLICATION_CREDENTIAL_ID"), ApplicationCredentialName: getenv("OS_APPLICATION_CREDENTIAL_NAME"),
	}
	if cfg.Auth.DomainID != "" {
		cfg.Auth.DomainName = ""
	} else if cfg.Auth.DomainName == "" {
		cfg.Auth.DomainID = "default"
	}
	var err error
	credential := cfg.Auth.ApplicationCredentialID != "" || cfg.Auth.ApplicationCredentialName != ""
	switch {
	case cfg.Auth.ApplicationCredentialID != "":
		cfg.Auth.ApplicationCredentialName, cfg.Auth.Username, cfg.Auth.DomainID, cfg.Auth.DomainName = "", "", "", ""
	case credential && cfg.Auth.Username == "":
		return nil, fmt.Errorf("%w: OS_APPLICATION_CREDENTIAL_NAME says nothing without OS_USERNAME: set that, or OS_APPLICATION_CREDENTIAL_ID instead", providers.ErrInvalid)
	case !credential && cfg.Auth.Username == "":
		return nil, fmt.Errorf("%w: neither OS_APPLICATION_CREDENTIAL_ID nor OS_USERNAME is set: set one of them", providers.ErrInvalid)
	}
	if credential {
		cfg.settings = "OS_APPLICATION_CREDENTIAL_ID (or _NAME) and OS_APPLICATION_CREDENTIAL_SECRET"
		cfg.Secret, err = secret.From(getenv, "OS_APPLICATION_CREDENTIAL_SECRET")
	} else {
		cfg.settings = "OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME and the domains of both"
		cfg.Auth.Scope, err = scopeFrom(getenv)
		if err == nil {
			cfg.Secret, err = secret.From(getenv, "OS_PASSWORD")
		}
	}
	if err != nil {
		return nil, err
	}
	if file := getenv("OS_CACERT"); file != "" {
		if cfg.Transport, err = trusting(file); err != nil {
			return nil, err
		}
	}
	return providers.AsProvider(New(cfg))
}

// scopeFrom is the project that a user's token is for.
func scopeFrom(getenv func(string) string) (*gophercloud.AuthScope, error) {
	scope := gophercloud.AuthScope{ProjectID: getenv("OS_PROJECT_ID"), ProjectName: getenv("OS_PROJECT_NAME")}
	switch {
	case scope.ProjectID != "":
		scope.ProjectName = ""
	case scope.ProjectName == "":
		return nil, fmt.Errorf("%w: neither OS_PROJECT_ID nor OS_PROJECT_NAME is set: set one of them", providers.ErrInvalid)
	default:
		if scope.DomainID, scope.DomainName = getenv("OS_PROJECT_DOMAIN_ID"), getenv("OS_PROJECT_DOMAIN_NAME"); scope.DomainID != "" {
			scope.DomainName = ""
		} else if scope.DomainName == "" {
			scope.DomainID = "default"
		}
	}
	return &scope, nil
}

// trusting is the usual way to the cloud, which trusts the authorities in the file besides the system's.
func trusting(file string) (http.RoundTripper, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: OS_CACERT cannot be read: %w: the plugin sees the host's state directory as /data/state", providers.ErrInvalid, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("%w: OS_CACERT names %s, which holds no certificate in PEM", providers.ErrInvalid, file)
	}
	usual, is := http.DefaultTransport.(*http.Transport)
	if !is {
		usual = &http.Transport{Proxy: http.ProxyFromEnvironment}
	}
	usual = usual.Clone()
	usual.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return usual, nil
}

// identify asks the metadata service which server this is, see metadata.Identity.
func (p *Provider) identify(ctx context.Context) (providers.Node, error) {
	document, err := metadata.Service{Cloud: cloudName, Setting: serverSetting, Client: p.cfg.Neighbour}.Get(ctx, p.cfg.Metadata, nil)
	if err != nil {
		return providers.Node{}, err
	}
	var server struct {
		UUID string `json:"uuid"`
	}
	if err := json.Unmarshal(document, &server); err != nil || !isUUID(server.UUID) {
		// The document itself is not told: it may hold the administrator's password.
		return providers.Node{}, fmt.Errorf("%w: what answers at %s is no metadata service of OpenStack (its uuid is %q): set %s to this server's id", providers.ErrUnavailable, p.cfg.Metadata, sanitize.Clip(server.UUID), serverSetting)
	}
	return providers.Node{ID: server.UUID}, nil
}

// status takes Nova's word. A server with a task under way may be on its way back, and counts as running. One that is suspended or
// paused goes on where it was when it is resumed, and writes what it held in memory.
func (p *Provider) status(ctx context.Context, node string) (string, providers.Life, error) {
	is, err := p.server(ctx, node)
	if err != nil {
		return "", providers.Unclear, err
	}
	word, life := fmt.Sprintf("%q", sanitize.Clip(is.Status)), providers.Unclear
	if is.Task != "" {
		word += fmt.Sprintf(" with the task %q under way", sanitize.Clip(is.Task))
	}
	switch is.Status {
	case "DELETED":
		life = providers.Gone
	case "SHUTOFF", "SHELVED", "SHELVED_OFFLOADED", "SOFT_DELETED":
		if life = providers.Stopped; is.Task != "" {
			life = providers.Running
		}
	case "ACTIVE", "BUILD", "HARD_REBOOT", "MIGRATING", "PASSWORD", "PAUSED", "REBOOT", "REBUILD", "RESCUE", "RESIZE", "REVERT_RESIZE", "SUSPENDED", "VERIFY_RESIZE":
		life = providers.Running
	}
	return word, life, nil
}

// server is what Nova says of a server.
type server struct {
	Status string `json:"status"`
	Task   string `json:"OS-EXT-STS:task_state"`
}

// server asks Nova for a server. Errors: providers.ErrNotFound only if Nova said so.
func (p *Provider) server(ctx context.Context, id string) (is server, err error) {
	is, err = call(ctx, p, "the question about server "+id, func(ctx context.Context, s *session) (is server, err error) {
		return is, servers.Get(ctx, s.compute, id).ExtractInto(&is)
	})
	if refused(err, http.StatusNotFound) && !missing(err, id) {
		return is, unknown("server", id, err)
	}
	return is, err
}
