// Package linode is the provider for Block Storage volumes of Linode (Akamai Cloud).
//
// # What is trusted
//
// Reads are believed: no reference or client of Linode's knows of a read that is older than a write with an answer. Where two nodes may
// act at once, Linode's refusal decides. Labels are unique, so two nodes that create one name at once get one volume (see label). A
// volume that has a Linode is attached to no other. A detach does not name the Linode, so the holder is read right before; see detach
// for the case that remains.
//
// The API does not show an attach or a detach that is under way: a volume has its Linode from the request to attach, before the
// device is there, until the device is gone. So this process remembers the detaches that it has asked for.
//
// # What it costs
//
// A mount is one GET of a list and one POST that attaches, an unmount one GET of the volume and one POST that detaches, besides
// what the driver asks to be sure; a mark is a GET and a PUT. Lookups by name that come together share one list. "Linode busy."
// is waited out by one caller per node (package queue), throttling by one caller at a time (rest.Client).
//
// # How a volume is known
//
// By its tags: see tags.go. Its label is its device's serial. It never changes, even if the volume gets another name.
//
// # Attachments end with the boot
//
// Volumes are attached with persist_across_boots=false: otherwise they would use slots of the Linode's configuration profile, which
// has 8 together with the system's disks. Such an attachment ends when the Linode shuts down or reboots. So after a boot a node holds
// no volume, and the next mount attaches it again, on any node.
package linode

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"

	sdk "github.com/linode/linodego"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/metadata"
	"github.com/blockvol/blockvol/providers/rest"
	"github.com/blockvol/blockvol/providers/sanitize"
	"github.com/blockvol/blockvol/providers/secret"
)

// Config has the settings of a Provider. Cluster and Token have no default.
type Config struct {
	Cluster  string
	Token    *secret.Secret
	Region   string // default: this Linode's own
	Instance string // id of this Linode; default: what its metadata service says
	API      string // URL
	Metadata string // URL of the metadata service

	Transport http.RoundTripper // for the API and the metadata service; nil is the default of each
	Log       logrus.FieldLogger
	Observe   providers.Observer // told of each request; may be nil
}

// Provider is Linode as seen from one of its instances. It keeps the contract of providers.Provider and Modifier.
type Provider struct {
	*managed.Provider[sdk.Volume]
	cfg     Config
	cluster string
	rest    *rest.Client
	api     sdk.Client
	scopes  atomic.Pointer[string] // see witness

	self *metadata.Identity
}

var (
	_ providers.Provider = (*Provider)(nil)
	_ providers.Modifier = (*Provider)(nil)
	_ providers.Examiner = (*Provider)(nil)
	_ providers.Fencer   = (*Provider)(nil)
)

// New checks the configuration. It makes no request.
func New(cfg Config) (*Provider, error) {
	cfg.API, cfg.Metadata = cmp.Or(cfg.API, defaultAPI), cmp.Or(cfg.Metadata, defaultMetadata)
	if cfg.Cluster == "" {
		return nil, fmt.Errorf("%w: the name of the cluster is empty: set CLUSTER", providers.ErrInvalid)
	}
	if cfg.Token == nil {
		return nil, fmt.Errorf("%w: there is no token: set LINODE_TOKEN or LINODE_TOKEN_FILE", providers.ErrInvalid)
	}
	if cfg.Instance != "" && !isID(cfg.Instance) {
		return nil, fmt.Errorf("%w: LINODE_INSTANCE_ID is %q, and the id of a Linode is a number", providers.ErrInvalid, sanitize.Clip(cfg.Instance))
	}
	if err := rest.CheckURLs(map[string]string{"LINODE_API_URL": cfg.API, "LINODE_METADATA_URL": cfg.Metadata}); err != nil {
		return nil, err
	}
	p := &Provider{cfg: cfg, cluster: cfg.Cluster}
	p.rest = rest.New(rest.Config{
		Cloud: "Linode", Endpoint: "LINODE_API_URL", Token: cfg.Token, Transport: cfg.Transport, Observe: cfg.Observe,
		Repeatable: repeatable, Before: permitted,
	})
	p.api = sdk.NewClient(&http.Client{Transport: witness{p.rest.HTTP, &p.scopes}})
	if _, err := p.api.UseURL(cfg.API); err != nil {
		return nil, fmt.Errorf("%w: LINODE_API_URL: %w", providers.ErrInvalid, err)
	}
	p.api.SetDebug(false).SetLogger(discard{}).SetRetryCount(0)
	p.api.UseCache(false)
	p.self = metadata.NewIdentity("Linode", "LINODE_INSTANCE_ID", cfg.Instance, p.metadata).WithZone(p.locate)
	p.Provider = managed.New(managed.Cloud[sdk.Volume]{
		Name: "Linode", Machine: "instance", StopWord: "power off", Cluster: cfg.Cluster,
		Options: []string{"encrypted", "tags", "zone"}, Buses: []string{"scsi"}, Sizes: sizes, Zone: "region",
		Unname: "the tags that begin with " + markPrefix, IDForm: "which is a number", IsID: isID, IsNode: isID,
		Locks: true, ResizeDetached: true, DetachesAnyHolder: true, DetachTime: leaving, Queue: managed.Queued,
		Manual: "docs/linode.md", Clock: p.rest.Clock, Permissions: p.tryPermissions,
		NodeAdvice: "check LINODE_INSTANCE_ID, and whose the token is", Attach: p.attach, Detach: p.detach,
		FenceRight: "a token with the scope linodes:read_write, and access of its user to the cluster's Linodes", TryFence: p.tryFence,
		PowerOff: p.shutDown, PowerOn: p.boot,
		Self: p.self.Node, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: maxAlternatives, All: p.all, Known: p.known, Get: p.get,
		CheckSpec: checkTags, Create: p.create, Turns: maxTurns, Taken: p.taken,
		Mark: p.mark, Claim: p.claim, Release: p.release, Rivals: p.rivals, Delete: p.destroy, Resize: p.resize,
		Plugins: map[string]managed.Plugin[sdk.Volume]{"linode": {List: p.ofPlugin, Name: pluginName}},
	})
	return p, nil
}

// FromEnv is New with the environment's settings. The node's own id is not used: a Linode has one.
func FromEnv(getenv func(string) string, _, cluster string, log logrus.FieldLogger, observe providers.Observer) (providers.Provider, error) {
	token, err := secret.From(getenv, "LINODE_TOKEN")
	if err != nil {
		return nil, err
	}
	return providers.AsProvider(New(Config{
		Cluster: cluster, Token: token, Region: getenv("LINODE_REGION"), Instance: getenv("LINODE_INSTANCE_ID"),
		API: cmp.Or(getenv("LINODE_API_URL"), getenv("LINODE_URL")), Metadata: getenv("LINODE_METADATA_URL"), Log: log, Observe: observe,
	}))
}

// discard drops the log of the SDK.
type discard struct{}

func (discard) Errorf(string, ...any) {}
func (discard) Warnf(string, ...any)  {}
func (discard) Debugf(string, ...any) {}

// locate finds out the region of this Linode, and refuses LINODE_REGION if it is another.
func (p *Provider) locate(ctx context.Context, node providers.Node) (providers.Node, error) {
	switch {
	case node.Zone == "" && p.cfg.Region == "": // the metadata service does not answer
		i, err := p.instance(ctx, node.ID)
		if errors.Is(err, providers.ErrNotFound) {
			return node, fmt.Errorf("%w: this account has no Linode %s: check LINODE_INSTANCE_ID and the token's account", providers.ErrInvalid, node.ID)
		} else if err != nil {
			return node, err
		}
		node.Zone = i.Region
	case node.Zone == "":
		node.Zone = p.cfg.Region
	case p.cfg.Region != "" && p.cfg.Region != node.Zone:
		return node, fmt.Errorf("%w: LINODE_REGION is %s, but this Linode %s runs in %s, and a volume can be attached in its own region only: set LINODE_REGION=%s or leave it out",
			providers.ErrInvalid, p.cfg.Region, node.ID, node.Zone, node.Zone)
	}
	return node, nil
}

// metadata asks the metadata service, which requires a token of its own.
func (p *Provider) metadata(ctx context.Context) (providers.Node, error) {
	service := metadata.Service{Cloud: "Linode", Setting: "LINODE_INSTANCE_ID"}
	if p.cfg.Transport != nil {
		service.Client = &http.Client{Transport: p.cfg.Transport}
	}
	header := http.Header{}
	header.Set("Metadata-Token-Expiry-Seconds", "300")
	token, err := service.Ask(ctx, http.MethodPut, p.cfg.Metadata+"/v1/token", header)
	if err != nil {
		return providers.Node{}, err
	}
	header = http.Header{}
	header.Set("Metadata-Token", string(token))
	header.Set("Accept", "application/json")
	document, err := service.Get(ctx, p.cfg.Metadata+"/v1/instance", header)
	if err != nil {
		return providers.Node{}, err
	}
	var about struct {
		ID     int64  `json:"id"`
		Region string `json:"region"`
	}
	if err := json.Unmarshal(document, &about); err != nil || about.ID <= 0 || about.Region == "" {
		return providers.Node{}, fmt.Errorf("%w: what answers at %s is not Linode's metadata service: it names no id and region: check LINODE_METADATA_URL, or set LINODE_INSTANCE_ID and LINODE_REGION",
			providers.ErrUnavailable, p.cfg.Metadata)
	}
	return providers.Node{ID: strconv.FormatInt(about.ID, 10), Zone: about.Region}, nil
}

// instance asks Linode about one of its instances.
func (p *Provider) instance(ctx context.Context, id string) (*sdk.Instance, error) {
	n := number(id)
	return call(ctx, p, "the question for Linode "+id, func(ctx context.Context) (*sdk.Instance, error) {
		return p.api.GetInstance(ctx, n)
	}, func(i *sdk.Instance) bool { return i.ID == n })
}

// status returns Stopped for a Linode that is "offline". One that is shutting down counts as running; so does one that is migrated,
// cloned or restored, which is possible while it runs. "stopped" (Linode's own maintenance) and "billing_suspension" are no evidence,
// since nothing says that the machine is off then.
func (p *Provider) status(ctx context.Context, node string) (managed.NodeStatus, error) {
	i, err := p.instance(ctx, node)
	if err != nil {
		return managed.NodeStatus{}, err
	}
	life := providers.Unclear
	switch i.Status {
	case sdk.InstanceOffline:
		life = providers.Stopped
	case sdk.InstanceRunning, sdk.InstanceBooting, sdk.InstanceRebooting, sdk.InstanceShuttingDown, sdk.InstanceProvisioning, sdk.InstanceDeleting,
		sdk.InstanceMigrating, sdk.InstanceRebuilding, sdk.InstanceCloning, sdk.InstanceRestoring, sdk.InstanceResizing:
		life = providers.Running
	}
	stopping := i.Status == sdk.InstanceShuttingDown || i.Status == sdk.InstanceDeleting
	status := managed.NodeStatus{Word: strconv.Quote(p.rest.Clean(string(i.Status))), Life: life, Stopping: stopping}
	for _, address := range i.IPv4 {
		if address != nil {
			status.Addresses = append(status.Addresses, managed.Private(address.String())...)
		}
	}
	return status, nil
}

// A Linode has a place for a disk for each GiB of memory, from 8 to 64, and its own disks need some of them. Source: Linode's
// reference, "Attach a volume", and the limits of its CSI driver.
const minDisks, maxDisks = 8, 64

// Slots counts the volumes and the own disks of this Linode.
func (p *Provider) Slots(ctx context.Context) (slots providers.Slots, err error) {
	node, err := p.Node(ctx)
	if err != nil {
		return slots, err
	}
	i, err := p.instance(ctx, node.ID)
	if err != nil {
		return slots, err
	}
	if i.Specs == nil {
		return slots, fmt.Errorf("%w: Linode does not tell the memory of Linode %s, by which it limits its volumes", providers.ErrUnavailable, node.ID)
	}
	volumes, err := call(ctx, p, "the question for the volumes of Linode "+node.ID, func(ctx context.Context) ([]sdk.Volume, error) {
		return p.api.ListInstanceVolumes(ctx, number(node.ID), nil)
	}, func([]sdk.Volume) bool { return true })
	if err != nil {
		return slots, err
	}
	disks, err := call(ctx, p, "the question for the disks of Linode "+node.ID, func(ctx context.Context) ([]sdk.InstanceDisk, error) {
		return p.api.ListInstanceDisks(ctx, number(node.ID), nil)
	}, func([]sdk.InstanceDisk) bool { return true })
	return providers.Slots{Most: min(max(i.Specs.Memory>>10, minDisks), maxDisks), Used: len(volumes) + len(disks)}, err
}

// isID reports whether a text is an id of Linode's.
func isID(id string) bool {
	n, err := strconv.Atoi(id)
	return err == nil && n > 0 && strconv.Itoa(n) == id
}

// number converts an id that isID accepts.
func number(id string) int {
	n, _ := strconv.Atoi(id)
	return n
}
