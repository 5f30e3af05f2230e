// Package digitalocean keeps volumes as block storage volumes of DigitalOcean.
//
// # What is trusted
//
// A write is the arbiter of whatever two nodes may do at once: a volume is attached if DigitalOcean took the action and held by
// another if it refused, two nodes that create one name at once get one volume because a volume's name is unique in its
// region, and a volume in use is not deleted because that is refused. Reads are taken for what is so at that moment: the
// reference tells of none that may be old, and DigitalOcean's own programs rest on it. What does take its time is an action,
// and a volume's droplet_ids need not show what is under way. So this process remembers what it has asked for until a read
// shows it, and asks for the action itself if that is not so for a while.
//
// # What it costs
//
// A mount is one read, of the volume by its name, and one attach; an unmount is one detach and one read. A name that is not
// found so, as an adopted volume has one of its own there, is looked for by the tag of our name: one read tells how many volumes
// have it, and a second shows the only one. Where it was found is remembered. Questions that come while one is under way share the
// next one, which reads the region's volumes, one page for each 200. A change of the record is one read and, for each tag, one call
// to give it and one to take the old one away; three to give one that the account has not had yet. To create a volume is to look
// for it, unless that has just been done, to make it, and to ask for the tag once more: four calls, however many volumes there are,
// unless others in the account have the same name of ours, such as those of other clusters: then the region's volumes are read.
//
// # How a volume is known
//
// By its tags alone, since its name and its description can never be changed: see tags.go. Its device is recognised by its
// serial, which is the volume's name in DigitalOcean.
package digitalocean

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/digitalocean/godo"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/metadata"
	"github.com/blockvol/blockvol/providers/queue"
	"github.com/blockvol/blockvol/providers/rest"
	"github.com/blockvol/blockvol/providers/sanitize"
	"github.com/blockvol/blockvol/providers/secret"
)

// Config is what a Provider needs to know. Cluster and Token have no default.
type Config struct {
	Cluster   string
	Token     *secret.Secret
	Region    string             // default: this droplet's
	Droplet   string             // this node's id; default: what the metadata service says
	API       string             // URL; default is DigitalOcean's
	Metadata  string             // URL; default is where each droplet finds it
	Transport http.RoundTripper  // for both; nil is the usual
	Log       logrus.FieldLogger // may be nil
	Observe   providers.Observer // told of each request; may be nil
}

// Provider is DigitalOcean as seen from one droplet. It keeps the contract of providers.Provider, Snapshotter and Modifier.
type Provider struct {
	*managed.Provider[godo.Volume]
	*managed.Snapshots[godo.Volume, godo.Snapshot]
	cfg  Config
	http *rest.Client
	api  *godo.Client

	queue  queue.Queue // requests for one name or volume
	byID   *batch.Batcher[godo.Volume]
	byNode *batch.Batcher[godo.Droplet]
	self   *metadata.Identity

	mu      sync.Mutex
	aliases map[string]string // by name: what a volume is called in DigitalOcean, if not as create calls it first
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)
)

var (
	regionSlug = regexp.MustCompile(`^[a-z][a-z0-9-]{1,31}$`)
	dropletID  = regexp.MustCompile(`^[1-9][0-9]{0,17}$`)
)

// New checks the configuration. It calls nobody.
func New(cfg Config) (*Provider, error) {
	refuse := func(format string, args ...any) (*Provider, error) {
		return nil, fmt.Errorf("%w: %s", providers.ErrInvalid, fmt.Sprintf(format, args...))
	}
	cfg.API = strings.TrimSuffix(cmp.Or(cfg.API, defaultAPI), "/")
	cfg.Metadata = strings.TrimSuffix(cmp.Or(cfg.Metadata, defaultMetadata), "/")
	switch {
	case cfg.Cluster == "":
		return refuse("the name of the cluster is empty: set CLUSTER")
	case len(cfg.Cluster) > maxText:
		return refuse("the name of the cluster has %d bytes, and may have %d: set CLUSTER to a shorter one", len(cfg.Cluster), maxText)
	case cfg.Token == nil:
		return refuse("there is no token: set %s", settingToken)
	case cfg.Region != "" && !regionSlug.MatchString(cfg.Region):
		return refuse("%s is %q: a region is a word such as nyc3", settingRegion, sanitize.Clip(cfg.Region))
	case cfg.Droplet != "" && !dropletID.MatchString(cfg.Droplet):
		return refuse("%s is %q: the id of a droplet is a number", settingDroplet, sanitize.Clip(cfg.Droplet))
	}
	if err := rest.CheckURLs(map[string]string{settingAPI: cfg.API, settingMetadata: cfg.Metadata}); err != nil {
		return nil, err
	}
	p := &Provider{cfg: cfg, aliases: map[string]string{}}
	p.http = rest.New(rest.Config{
		Cloud: "DigitalOcean", Endpoint: settingAPI, Token: cfg.Token, Transport: cfg.Transport, Observe: cfg.Observe, Repeatable: repeatable,
	})
	var err error
	if p.api, err = godo.New(p.http.HTTP, godo.SetBaseURL(cfg.API+"/"), godo.SetUserAgent("blockvol")); err != nil {
		return refuse("%s cannot be used: %v", settingAPI, err)
	}
	p.byID = batch.New(p.askIDs, mostAtOnce)
	p.byNode = batch.New(p.askDroplet, 1)
	p.self = metadata.NewIdentity("droplet", settingDroplet, cfg.Droplet, p.identify).WithZone(p.locate)
	p.Provider = managed.New(managed.Cloud[godo.Volume]{
		Name: "DigitalOcean", Machine: "droplet", StopWord: "power off", Cluster: cfg.Cluster,
		Options: []string{"snapshot", "tags"}, Buses: []string{"scsi"}, Sizes: sizes, // there is one kind of volume
		Unname: "the tag that begins with " + tagPrefix + textCluster,
		IDForm: "which looks like 506f78a4-e098-11e5-ad9f-000f53306ae1", IsID: volumeID.MatchString, IsNode: dropletID.MatchString,
		Locks: true, Queue: managed.Queued, AttachTime: unasked, DetachTime: unasked, AbsentFor: justAsked,
		NodeAdvice: "check " + settingMetadata + ", " + settingDroplet + " and whose the token is",
		Self:       p.self.Node, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: mostAtOnce, All: p.all, Get: p.get,
		Attach: p.attach, Detach: p.detach, OperationState: p.operationState,
		CheckSpec: checkTags, Create: p.create, Await: p.await, Turns: mostTries, Taken: p.taken,
		Mark: p.mark, Claim: p.claim, Release: p.release, Rivals: p.rivals, Delete: p.remove, Resize: p.resize,
	})
	p.Snapshots = managed.NewSnapshots(p.Provider, p.snapshots())
	return p, nil
}

// mostAtOnce is how many questions one read of the region's volumes answers; it is no limit of DigitalOcean's.
const mostAtOnce = 1000

// FromEnv is New with the environment's settings. The node's own id is not used: a droplet has one.
func FromEnv(getenv func(string) string, _, cluster string, log logrus.FieldLogger, observe providers.Observer) (providers.Provider, error) {
	token, err := secret.From(getenv, settingToken)
	if err != nil {
		return nil, err
	}
	return providers.AsProvider(New(Config{
		Cluster: cluster, Token: token, Region: getenv(settingRegion), Droplet: getenv(settingDroplet),
		API: getenv(settingAPI), Metadata: getenv(settingMetadata), Log: log, Observe: observe,
	}))
}

// locate tells where this droplet is. Its zone is its region: a volume of another cannot be attached.
func (p *Provider) locate(ctx context.Context, node providers.Node) (_ providers.Node, err error) {
	if node.Zone = p.cfg.Region; node.Zone == "" {
		node.Zone, err = p.metadata(ctx, "region", settingRegion, regionSlug)
	}
	return node, err
}

// identify asks the metadata service which droplet this is.
func (p *Provider) identify(ctx context.Context) (providers.Node, error) {
	id, err := p.metadata(ctx, "id", settingDroplet, dropletID)
	return providers.Node{ID: id}, err
}

// metadata asks the metadata service for an item, which the setting makes needless.
func (p *Provider) metadata(ctx context.Context, item, setting string, form *regexp.Regexp) (string, error) {
	service := metadata.Service{Cloud: "DigitalOcean", Setting: setting}
	if p.cfg.Transport != nil {
		service.Client = &http.Client{Transport: p.cfg.Transport}
	}
	address := p.cfg.Metadata + "/metadata/v1/" + item
	answer, err := service.Get(ctx, address, nil)
	if err != nil {
		return "", err
	}
	if !form.Match(answer) {
		return "", fmt.Errorf("%w: what answers at %s is not the metadata service of DigitalOcean (it says %q): blockvol must run on a droplet, or %s be set",
			providers.ErrUnavailable, address, p.http.Clean(string(answer)), setting)
	}
	return string(answer), nil
}

// status says Stopped for a droplet that is off. What "archive" means for its disks, no reference tells.
func (p *Provider) status(ctx context.Context, node string) (string, providers.Life, error) {
	droplet, found, err := p.byNode.Get(ctx, node)
	switch {
	case err != nil:
		return "", providers.Unclear, err
	case !found:
		return "", providers.Unclear, providers.ErrNotFound
	}
	life := providers.Unclear
	switch droplet.Status {
	case "new", "active":
		life = providers.Running
	case "off":
		life = providers.Stopped
	}
	return strconv.Quote(p.http.Clean(droplet.Status)), life, nil
}

func (p *Provider) askDroplet(ctx context.Context, ids []string) (map[string]godo.Droplet, error) {
	id, err := strconv.Atoi(ids[0])
	if err != nil {
		return nil, err
	}
	droplet, _, err := p.api.Droplets.Get(ctx, id)
	err = p.explain(ctx, "the request for droplet "+ids[0], err, droplet != nil && droplet.ID == id)
	if isMissing(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return map[string]godo.Droplet{ids[0]: *droplet}, nil
}
