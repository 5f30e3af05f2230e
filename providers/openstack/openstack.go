// Package openstack implements the provider contract with volumes of Cinder, the block storage of OpenStack, attached by Nova.
//
// # Consistency
//
// Nova and Cinder decide which server holds a volume: when Nova is asked to attach it, Cinder reserves it for one server in one
// step, and a detach names the server. Reads use the same database as writes, and are trusted. Only creating a volume, which
// depends on what several nodes read of each other, allows for reads that are seconds old, as with a database cluster: see
// below.
//
// The services decide whether a token is valid: a refused token is replaced once, whatever this node's clock says.
//
// # Requests
//
// A mount of an existing volume is one list of Cinder, filtered by the digest of the name, and one attach of Nova; an unmount is
// one detach. Concurrent reads of several volumes share a request, which then lists all volumes of the cluster. A volume that is
// being attached costs one more request, since Cinder's volume does not show to which server.
//
// # Identity
//
// Metadata identify a volume, see tags.go. Cinder's name of the volume is for people. A disk is identified by its serial, which
// is the volume's ID; virtio shows the first 20 characters. The device name that Nova reports is a guess.
//
// # One name, one volume
//
// Names are not unique in Cinder, and it has no compare-and-set. So a volume is created in steps:
//
//  1. A node that finds no volume of the name creates a candidate: a volume with the name, the state "claimed" and its maker, which
//     is the process that created it. A candidate is never used as a volume, so it never holds data.
//  2. After lag, the maximum age of a read, the maker lists all volumes of the name. If one of them is settled, or is a candidate
//     with a lower ID, the maker deletes its own candidate. If there is a candidate with a higher ID, the maker waits. Otherwise it
//     settles its own candidate: this one write makes it the volume of the name.
//
// Cinder cannot delete a volume while it creates it. So the maker first gives such a candidate the state "withdrawn", and others
// do not wait for it.
//
// Two candidates are never both settled: the maker of the later one lists after lag, so its list shows the earlier one, and it
// waits until that is gone, or deletes its own. This needs no clock of the cloud, and does not compare clocks.
//
// A maker may die. A candidate that is not settled within its life, counted from the request for it, is never settled: its maker
// deletes it, and sends no write that could take effect later than patience. So other processes ignore a candidate that they
// have seen for as long as patience, or that is an hour old by the cloud's clock. It is an orphan: an empty disk that nobody
// uses. Its maker deletes it when it creates the name again; Delete deletes it with the volume of the name. Nothing else deletes
// one, since volumes are deleted by their maker in Create, and in Delete, and nowhere else. If a process is stopped for minutes
// within step 2, two volumes may be settled: then nothing is deleted, and every call returns ErrAmbiguous.
//
// A maker deletes only candidates that were never settled, and does not settle a candidate that it has begun to delete; no other
// process settles it. If a request to settle had no answer, its maker deletes nothing for as long as the request may still take
// effect; after a request that took effect, for as long as a read may not show it. So a late or repeated deletion cannot hit a
// volume with data.
//
// A candidate is settled when Cinder has created it, or after half its life. If Cinder fails to create it after that, the
// operator has to delete it.
package openstack

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

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

// Config configures a Provider.
type Config struct {
	Cluster   string
	Auth      gophercloud.AuthOptions // the credentials without their secret
	Secret    *secret.Secret          // the password, or the secret of the application credential
	Region    string                  // default: the first in the catalogue
	Interface string                  // of the services: public, internal or admin; default public
	Server    string                  // the ID of this server; default: according to its metadata service
	Metadata  string                  // URL of that service's document
	Transport http.RoundTripper       // to the cloud; default: that of package rest
	Neighbour *http.Client            // for the metadata service; default: that of package metadata
	Log       logrus.FieldLogger      // may be nil
	Observe   providers.Observer      // called for each request; may be nil

	settings string // the settings with the credentials, for errors
}

// Provider is an OpenStack cloud as seen from one server. It implements providers.Provider, Snapshotter and Modifier.
type Provider struct {
	*managed.Provider[volume]
	*managed.Snapshots[volume, snapshots.Snapshot]
	cfg     Config
	client  *rest.Client
	session *batch.Cached[*session]

	mu       sync.Mutex
	oldToken string // the one before, which an answer may still contain

	maker     string // this process, as the maker of volumes
	times     times
	names     keymutex.KeyMutex // of Create, by name
	requested moments           // by name: the last request for a candidate
	seen      moments           // by ID: when this process first saw a candidate
	inDoubt   moments           // by ID: the request that settles a candidate and may have taken effect
	withdrawn sync.Map          // by ID: candidates that this process has begun to delete
	reported  sync.Map          // by ID: orphans that have been logged
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)
	_ providers.Examiner    = (*Provider)(nil)
	_ providers.Fencer      = (*Provider)(nil)
)

// New checks the configuration. It makes no request.
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
	p := &Provider{cfg: cfg, maker: rand.Text(), times: usual}
	p.client = rest.New(rest.Config{
		Cloud: cloudName, Endpoint: "OS_AUTH_URL", Secrets: p.secrets, Transport: cfg.Transport, Observe: cfg.Observe, Repeatable: repeatable,
	})
	p.session = batch.Cache("for a token of "+cloudName, p.login)
	self := metadata.NewIdentity("server", serverSetting, cfg.Server, p.identify)
	p.Provider = managed.New(managed.Cloud[volume]{
		Name: cloudName, Machine: "server", StopWord: "stop", Cluster: cfg.Cluster,
		Options: []string{"snapshot", "tags", "type", "zone"}, // a volume type determines encryption
		Buses:   []string{"scsi", "virtio"}, Sizes: sizes,
		Unname: "the name (openstack volume unset --property " + keyDigest + ")",
		IDForm: "which looks like 2f1c5b9e-8d3a-4b7e-9c6d-1a2b3c4d5e6f", IsID: isUUID, IsNode: isUUID,
		MarksAlone: true, ShowsOperations: true, Queue: managed.QueuedWhenBusy, Attach: p.attach, Detach: p.detach,
		Manual: "docs/openstack.md", Clock: p.client.Clock, Quotas: p.quotas,
		// No zone: Cinder's zones are not Nova's, and in most clouds any server can attach any volume.
		FenceRight: "the role member in the project, which may stop and start servers", PowerOff: p.stop, PowerOn: p.start,
		Self: self.Node, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: maxNames, All: p.all, Known: p.known, Get: p.get, Settle: p.withAttachment,
		CheckSpec: checkSpec, Mark: p.mark, Tags: ownTags, Claim: p.claim, Release: p.release, Delete: p.remove, Resize: p.extend,
	})
	p.Snapshots = managed.NewSnapshots(p.Provider, p.snapshots())
	return p, nil
}

// identify asks the metadata service which server this is.
func (p *Provider) identify(ctx context.Context) (providers.Node, error) {
	document, err := metadata.Service{Cloud: cloudName, Setting: serverSetting, Client: p.cfg.Neighbour}.Get(ctx, p.cfg.Metadata, nil)
	if err != nil {
		return providers.Node{}, err
	}
	var server struct {
		UUID string `json:"uuid"`
	}
	if err := json.Unmarshal(document, &server); err != nil || !isUUID(server.UUID) {
		// The document is not shown: it may contain the administrator's password.
		return providers.Node{}, fmt.Errorf("%w: %s is no metadata service of OpenStack (its uuid is %q): set %s to this server's id", providers.ErrUnavailable, p.cfg.Metadata, sanitize.Clip(server.UUID), serverSetting)
	}
	return providers.Node{ID: server.UUID}, nil
}

// status returns the status according to Nova. A stopped server with a task may be starting: it is Running. So is one that is
// suspended or paused: when it is resumed, it writes what it holds in memory. A server that is called stopped while its power is on is
// no evidence: Nova looks at the power from time to time, and may have found a machine that runs all the same.
func (p *Provider) status(ctx context.Context, node string) (managed.NodeStatus, error) {
	server, err := p.server(ctx, node)
	if err != nil {
		return managed.NodeStatus{}, err
	}
	word, life := fmt.Sprintf("%q", sanitize.Clip(server.Status)), providers.Unclear
	if server.Task != "" {
		word += fmt.Sprintf(" with the task %q in progress", sanitize.Clip(server.Task))
	}
	switch server.Status {
	case "DELETED":
		life = providers.Gone
	case "SHUTOFF", "SHELVED", "SHELVED_OFFLOADED", "SOFT_DELETED":
		switch life = providers.Stopped; {
		case server.Task != "":
			life = providers.Running
		case server.Power == servers.RUNNING || server.Power == servers.PAUSED:
			life = providers.Unclear
			word += ", and its power is on"
		}
	case "ACTIVE", "BUILD", "HARD_REBOOT", "MIGRATING", "PASSWORD", "PAUSED", "REBOOT", "REBUILD", "RESCUE", "RESIZE", "REVERT_RESIZE", "SUSPENDED", "VERIFY_RESIZE":
		life = providers.Running
	}
	status := managed.NodeStatus{Word: word, Life: life, Stopping: slices.Contains([]string{"powering-off", "deleting", "soft-deleting"}, server.Task)}
	for _, network := range slices.Sorted(maps.Keys(server.Addresses)) {
		for _, address := range server.Addresses[network] {
			status.Addresses = append(status.Addresses, managed.Private(address.Address)...)
		}
	}
	return status, nil
}

// server is Nova's description of a server.
type server struct {
	Status string `json:"status"`
	Task   string `json:"OS-EXT-STS:task_state"`
	Power  int    `json:"OS-EXT-STS:power_state"` // 0 if it is not known

	Addresses map[string][]servers.Address `json:"addresses"` // by network
}

// server asks Nova for a server. Errors: ErrNotFound only according to Nova itself.
func (p *Provider) server(ctx context.Context, id string) (server, error) {
	found, err := call(ctx, p, "the request for server "+id, func(ctx context.Context, s *session) (found server, err error) {
		return found, servers.Get(ctx, s.compute, id).ExtractInto(&found)
	})
	if refused(err, http.StatusNotFound) && !missing(err, id) {
		return found, unknown("server", id, err)
	}
	return found, err
}
