// Package hetzner is the provider for Volumes of Hetzner Cloud.
//
// # What is trusted
//
// Reads are believed, and not repeated: the API reference does not say that they lag, and the API guards concurrent changes by locks
// (error "locked") and by refusing what is based on an old state ("conflict"). Still, where two nodes may act at once, the API's
// refusal decides. It neither attaches nor deletes an attached volume. Names are unique in a project, and the name of our volumes is
// made of cluster and name, so two nodes that create one name at once get one volume.
//
// A volume shows the server that it is attached to, but not whether an attach or detach is still under way. This process knows that of
// changes that it made, and asks for the rest when a change is refused.
//
// # What it costs
//
// A project has 3,600 requests an hour, one more each second. A mount is one read and one attach. An unmount is one detach, with
// a read right before it, since the request to detach does not name the server, and a read after it, which the driver asks for.
// Lookups by name at the same time share a request, up to 50 names. The first attach of a volume costs one more request, which
// protects the volume from deletion in the console and by the API. Delete and Forget remove the protection.
//
// # How a volume is known
//
// By its labels, see tags.go. Its device has its id as serial (VPD page 0x80, /dev/disk/by-id/scsi-0HC_Volume_<id>).
// What Hetzner calls GB is GiB: a volume of 10 GB has 10,737,418,240 bytes.
package hetzner

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/metadata"
	"github.com/blockvol/blockvol/providers/recent"
	"github.com/blockvol/blockvol/providers/rest"
	"github.com/blockvol/blockvol/providers/sanitize"
	"github.com/blockvol/blockvol/providers/secret"
)

// Config has the settings of a Provider. Cluster and Token have no default.
type Config struct {
	Cluster   string
	Token     *secret.Secret
	Server    string             // this server's id; default: what its metadata service says
	Endpoint  string             // URL of the API, version included
	Metadata  string             // URL of the metadata service
	Transport http.RoundTripper  // below all requests; nil: the usual one
	Observe   providers.Observer // told of each request; may be nil
}

// Provider is Hetzner Cloud as seen from one server. It keeps the contract of providers.Provider and Modifier.
type Provider struct {
	*managed.Provider[*volume]
	cfg      Config
	cluster  string
	client   *rest.Client
	metadata metadata.Service

	self      *metadata.Identity
	protected recent.Map[int64, bool] // by id of a volume: whether it is protected from deletion
}

var (
	_ providers.Provider = (*Provider)(nil)
	_ providers.Modifier = (*Provider)(nil)
	_ providers.Examiner = (*Provider)(nil)
	_ providers.Fencer   = (*Provider)(nil)
)

// New checks the configuration. It makes no request.
func New(cfg Config) (*Provider, error) {
	cfg.Endpoint = strings.TrimRight(cmp.Or(cfg.Endpoint, defaultEndpoint), "/")
	cfg.Metadata = strings.TrimRight(cmp.Or(cfg.Metadata, defaultMetadata), "/")
	switch {
	case cfg.Cluster == "":
		return nil, fmt.Errorf("%w: the name of the cluster is empty: set CLUSTER", providers.ErrInvalid)
	case cfg.Token == nil:
		return nil, fmt.Errorf("%w: there is no token: set %s or %s_FILE", providers.ErrInvalid, tokenSetting, tokenSetting)
	case cfg.Server != "" && !isID.MatchString(cfg.Server):
		return nil, fmt.Errorf("%w: %s is %q, and a server's id is a number", providers.ErrInvalid, serverSetting, sanitize.Clip(cfg.Server))
	}
	if err := rest.CheckURLs(map[string]string{endpointSetting: cfg.Endpoint, metadataSetting: cfg.Metadata}); err != nil {
		return nil, err
	}
	p := &Provider{cfg: cfg, cluster: cfg.Cluster, metadata: metadata.Service{Cloud: "Hetzner Cloud", Setting: serverSetting}}
	p.client = rest.New(rest.Config{
		Cloud: "Hetzner Cloud", Endpoint: endpointSetting, Token: cfg.Token, Transport: cfg.Transport, Observe: cfg.Observe,
		Repeatable: repeatable, Refills: true,
	})
	if cfg.Transport != nil {
		p.metadata.Client = &http.Client{Transport: cfg.Transport}
	}
	p.self = metadata.NewIdentity("server", serverSetting, cfg.Server, p.askMetadata).WithZone(p.locate)
	p.Provider = managed.New(managed.Cloud[*volume]{
		Name: "Hetzner Cloud", Machine: "server", StopWord: "power off", Cluster: cfg.Cluster,
		Options: []string{"tags", "zone"}, Buses: []string{"scsi"}, Sizes: sizes, Zone: "location",
		Unname: "the label " + keyLabel, IDForm: "which is a number", IsID: isID.MatchString, IsNode: isID.MatchString,
		Locks: true, DetachesAnyHolder: true, DetachTime: leaving, Queue: managed.Queued, Manual: "docs/hetzner.md", Clock: p.client.Clock,
		NodeAdvice:   "check " + serverSetting + ", and take a token of the project that the server is in",
		BeforeAttach: p.protectBefore, Attach: p.attach, Explain: p.wrongLocation, Detach: p.detach,
		OperationState: p.operationState, Running: p.running,
		FenceRight: "a token that may read and write", PowerOff: p.powerOff, PowerOn: p.powerOn,
		Self: p.self.Node, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: perPage, All: p.all, Known: p.known, Get: p.get,
		CheckSpec: checkTags, Create: p.create, Taken: p.taken,
		Mark: p.mark, Claim: p.claim, Release: p.release, Delete: p.remove, Resize: p.resize,
		Plugins: map[string]managed.Plugin[*volume]{"docker-volume-hetzner": {List: p.ofPlugin, Name: pluginName}},
	})
	return p, nil
}

// FromEnv is New with the environment's settings. The node's own name is not used: a server has an id.
func FromEnv(getenv func(string) string, _, cluster string, _ logrus.FieldLogger, observe providers.Observer) (providers.Provider, error) {
	token, err := secret.From(getenv, tokenSetting)
	if err != nil {
		return nil, err
	}
	return providers.AsProvider(New(Config{
		Cluster: cluster, Token: token, Observe: observe,
		Server: getenv(serverSetting), Endpoint: getenv(endpointSetting), Metadata: getenv(metadataSetting),
	}))
}

// isID matches the numbers that JSON keeps exactly (Hetzner's ids have up to 52 bits).
var isID = regexp.MustCompile(`^[1-9][0-9]{0,15}$`)

// askMetadata asks the metadata service which server this is.
func (p *Provider) askMetadata(ctx context.Context) (providers.Node, error) {
	answer, err := p.metadata.Get(ctx, p.cfg.Metadata+metadataPath+"instance-id", nil)
	switch {
	case err != nil:
		return providers.Node{}, err
	case !isID.Match(answer):
		return providers.Node{}, fmt.Errorf("%w: the metadata service at %s does not answer with the id of a server of Hetzner Cloud, but with %q: blockvol must run on one, or %s be set",
			providers.ErrUnavailable, p.cfg.Metadata, sanitize.Clip(string(answer)), serverSetting)
	}
	return providers.Node{ID: string(answer), Zone: p.askLocation(ctx)}, nil
}

// locate asks the API for the location if the metadata service did not tell it.
func (p *Provider) locate(ctx context.Context, node providers.Node) (providers.Node, error) {
	if node.Zone != "" {
		return node, nil
	}
	server, err := p.server(ctx, node.ID)
	switch {
	case errors.Is(err, providers.ErrNotFound), err == nil && server.Location.Name == "":
		return node, fmt.Errorf("%w: the project of the token in %s has no server %s: take a token of the project that this server is in, and check %s",
			providers.ErrInvalid, tokenSetting, node.ID, serverSetting)
	case err != nil:
		return node, err
	}
	node.Zone = server.Location.Name
	return node, nil
}

const metadataPath = "/hetzner/v1/metadata/"

var zoneAndPark = regexp.MustCompile(`^([a-z]{2,8}[0-9]{0,3})(-dc[0-9]+)?$`)

// askLocation asks the metadata service for the data centre, and returns its location: "fsn1" for "fsn1-dc14". It returns "" for any
// other answer, since the API knows the location, too.
func (p *Provider) askLocation(ctx context.Context) string {
	answer, err := p.metadata.Get(ctx, p.cfg.Metadata+metadataPath+"availability-zone", nil)
	if parts := zoneAndPark.FindSubmatch(bytes.TrimSpace(answer)); err == nil && parts != nil {
		return string(parts[1])
	}
	return ""
}

// server asks for a server. Errors: providers.ErrNotFound only if the cloud said so.
func (p *Provider) server(ctx context.Context, id string) (*schema.Server, error) {
	answer, err := ask(ctx, p, "the question for server "+id, http.MethodGet, "/servers/"+id, nil, func(a *schema.ServerGetResponse) bool { return text(a.Server.ID) == id })
	if err != nil {
		return nil, err
	}
	return &answer.Server, nil
}

// status returns Stopped for a server that is off. A server that is stopping may still write, and counts as running; so does one that
// is migrated or rebuilt, which starts again by itself.
func (p *Provider) status(ctx context.Context, node string) (managed.NodeStatus, error) {
	s, err := p.server(ctx, node)
	if err != nil {
		return managed.NodeStatus{}, err
	}
	life := providers.Unclear
	switch s.Status { // the others are unclear
	case "running", "initializing", "starting", "stopping", "migrating", "rebuilding", "deleting": //nolint:misspell // Hetzner's words
		life = providers.Running
	case "off":
		life = providers.Stopped
	}
	status := managed.NodeStatus{Word: strconv.Quote(sanitize.Clip(s.Status)), Life: life, Stopping: s.Status == "stopping" || s.Status == "deleting"}
	for _, net := range s.PrivateNet {
		status.Addresses = append(status.Addresses, managed.Addresses(net.IP)...)
	}
	return status, nil
}

// maxVolumes is how many volumes a server can have. The API does not tell it. Source: Hetzner's "Volumes" FAQ, and its CSI driver.
const maxVolumes = 16

// Slots counts the volumes of this server.
func (p *Provider) Slots(ctx context.Context) (providers.Slots, error) {
	node, err := p.Node(ctx)
	if err != nil {
		return providers.Slots{}, err
	}
	server, err := p.server(ctx, node.ID)
	if err != nil {
		return providers.Slots{}, err
	}
	return providers.Slots{Most: maxVolumes, Used: len(server.Volumes)}, nil
}

// number converts an id that isID matches.
func number(id string) int64 {
	n, _ := strconv.ParseInt(id, 10, 64) // up to 16 digits
	return n
}

func text(id int64) string { return strconv.FormatInt(id, 10) }
