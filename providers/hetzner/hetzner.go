// Package hetzner keeps volumes as Volumes of Hetzner Cloud.
//
// # What is trusted
//
// Hetzner Cloud's API shows what it has accepted: nothing in its reference says that reads lag, and it guards changes made at
// once by locks (error "locked") and by refusing what is built on an old state ("conflict"). So a read is believed, and none is
// repeated to be sure. What must not go wrong rests on what the API refuses all the same: an attached volume is not attached
// again, nor deleted, and of two volumes that would get one name at once, the second is refused. The names are unique in a
// project, and each volume of ours has one that is made of cluster and name.
//
// A volume shows which server it is attached to, and not whether it is still on its way there or away. That is known of changes
// that this process began, and asked when a change is refused.
//
// # What it costs
//
// A project has 3,600 requests an hour, one more each second. A mount is one read and one attach. An unmount is one detach, with
// a read right before it, since the request to detach does not name the server, and a read after it, which the driver asks for.
// Questions for names that come together share a request, up to 50 names. The first attach of a volume costs one more request:
// it protects the volume from deletion, in the console as by the API, and so it stays until Delete or Forget lift that.
//
// # How a volume is known
//
// By its labels, see tags.go. Its kernel device has its id for a serial (VPD page 0x80, /dev/disk/by-id/scsi-0HC_Volume_<id>).
// What Hetzner calls GB are GiB: a volume of 10 has 10,737,418,240 bytes.
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

// Config is what a Provider needs to know. Only Cluster and Token have no default.
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
	protected recent.Map[int64, bool] // volumes: from deletion
}

var (
	_ providers.Provider = (*Provider)(nil)
	_ providers.Modifier = (*Provider)(nil)
)

// New checks the configuration. It calls nobody.
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
		Locks: true, DetachesAnyHolder: true, DetachTime: leaving, Queue: managed.Queued, NodeAdvice: "check " + serverSetting + ", and take a token of the project that the server is in",
		BeforeAttach: p.protectBefore, Attach: p.attach, Explain: p.wrongLocation, Detach: p.detach,
		OperationState: p.operationState, Running: p.running,
		Self: p.self.Node, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: perPage, All: p.all, Get: p.get,
		CheckSpec: checkTags, Create: p.create, Taken: p.taken,
		Mark: p.mark, Claim: p.claim, Release: p.release, Delete: p.remove, Resize: p.resize,
	})
	return p, nil
}

// repeatable tells of a POST that does no harm twice. A volume's creation is refused the second time, since the name is taken,
// and so is an attach. A detach is not among them: carried out late, it would be of whatever server has the volume then.
func repeatable(r *http.Request) bool { return !strings.HasSuffix(r.URL.Path, "/actions/detach") }

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

// isID is a number that JSON keeps whole (Hetzner's ids have up to 52 bits).
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

// askLocation is the location as the metadata service tells it, in the name of the data centre: "fsn1" of "fsn1-dc14". Empty is
// anything else: the API knows it too.
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

// status says Stopped for a server that is off. One on its way there may still write, and counts as running; so does one that is
// moved or set up anew, which runs again by itself.
func (p *Provider) status(ctx context.Context, node string) (string, providers.Life, error) {
	s, err := p.server(ctx, node)
	if err != nil {
		return "", providers.Unclear, err
	}
	life := providers.Unclear
	switch s.Status { // the others are unclear
	case "running", "initializing", "starting", "stopping", "migrating", "rebuilding", "deleting": //nolint:misspell // Hetzner's words
		life = providers.Running
	case "off":
		life = providers.Stopped
	}
	return strconv.Quote(sanitize.Clip(s.Status)), life, nil
}

// number is an id that isID has matched.
func number(id string) int64 {
	n, _ := strconv.ParseInt(id, 10, 64) // up to 16 digits
	return n
}

func text(id int64) string { return strconv.FormatInt(id, 10) }
