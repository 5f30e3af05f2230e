// Package digitalocean is the provider for DigitalOcean's block storage volumes.
//
// # What is trusted
//
// Where two nodes may act at once, DigitalOcean's refusal of a write decides. It attaches a volume to one droplet only. A volume's
// name is unique in its region, so two nodes that create one name at once get one volume. It does not delete a volume in use.
//
// Reads are believed: the API reference knows of no stale reads, and DigitalOcean's own programs rely on that. But an action takes
// time, and a volume's droplet_ids may not show an action that is under way. So this process remembers what it has asked for until a
// read shows it, and asks for the state of the action if that takes long.
//
// # What it costs
//
// A mount is one read, of the volume by its name in DigitalOcean, and one attach; an unmount is one detach and one read. An adopted
// volume has another name in DigitalOcean, so it is looked up by the tag with its name in Docker: one read returns the number of
// volumes with the tag, and a second one the volume, if there is only one. Its name is remembered.
//
// Lookups that come while one is under way share the next request, a list of the region's volumes with 200 in a page. A change of the
// record is one read and, for each tag, one call to add it and one to remove the old one; adding a tag that is new in the account
// takes three. A create is four calls, however many volumes there are: a lookup, unless one has just been made, the request itself,
// and a last look at the tag. If the tag has other volumes, such as another cluster's, it also lists the region's volumes.
//
// # How a volume is known
//
// By its tags alone, since its name and its description cannot be changed: see tags.go. Its device has its name in DigitalOcean as
// serial.
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

// Config has the settings of a Provider. Cluster and Token have no default.
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
	aliases map[string]string // by name: the volume's name in DigitalOcean, if it is not the one that create tries first
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)
	_ providers.Examiner    = (*Provider)(nil)
	_ providers.Fencer      = (*Provider)(nil)
	_ providers.SlotCounter = (*Provider)(nil)
)

var (
	regionSlug = regexp.MustCompile(`^[a-z][a-z0-9-]{1,31}$`)
	dropletID  = regexp.MustCompile(`^[1-9][0-9]{0,17}$`)
)

// New checks the configuration. It makes no request.
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
		Manual: "docs/digitalocean.md", Clock: p.http.Clock, Permissions: p.tryPermissions, Quotas: p.quotas,
		NodeAdvice: "check " + settingMetadata + ", " + settingDroplet + " and whose the token is",
		FenceRight: "the scope droplet:update", PowerOff: p.powerOff, PowerOn: p.powerOn,
		Self: p.self.Node, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: mostAtOnce, All: p.all, Known: p.known, Get: p.get,
		Attach: p.attach, Detach: p.detach, OperationState: p.operationState,
		CheckSpec: checkTags, Create: p.create, Await: p.await, Turns: mostTries, Taken: p.taken,
		Mark: p.mark, Tags: ownTags, Claim: p.claim, Release: p.release, Rivals: p.rivals, Delete: p.remove, Resize: p.resize,
		// dostorage does not create volumes: its operators make them in DigitalOcean, and it uses them by name.
		Plugins: map[string]managed.Plugin[godo.Volume]{"dostorage": {List: p.all, Name: func(v godo.Volume) (string, bool) { return v.Name, false }}},
	})
	p.Snapshots = managed.NewSnapshots(p.Provider, p.snapshots())
	return p, nil
}

// mostAtOnce is how many lookups share one list of the region's volumes; DigitalOcean sets no limit.
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

// locate returns the droplet with its zone, which is its region: a volume of another region cannot be attached.
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

// metadata asks the metadata service for an item. Its errors advise to set the setting.
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

// status returns Stopped for a droplet that is off. No reference says what "archive" means for its disks.
func (p *Provider) status(ctx context.Context, node string) (managed.NodeStatus, error) {
	droplet, found, err := p.byNode.Get(ctx, node)
	switch {
	case err != nil:
		return managed.NodeStatus{}, err
	case !found:
		return managed.NodeStatus{}, providers.ErrNotFound
	}
	life := providers.Unclear
	switch droplet.Status {
	case "new", "active":
		life = providers.Running
	case "off":
		life = providers.Stopped
	}
	status := managed.NodeStatus{Word: strconv.Quote(p.http.Clean(droplet.Status)), Life: life}
	if address, err := droplet.PrivateIPv4(); err == nil {
		status.Addresses = managed.Addresses(address)
	}
	return status, nil
}

// maxVolumes is how many volumes a droplet can have. The API does not tell it. Source: DigitalOcean's reference, "Attach a Block Storage
// Volume to a Droplet". Droplets from before that rule may refuse more than 7.
const maxVolumes = 15

// Slots counts the volumes of this droplet.
func (p *Provider) Slots(ctx context.Context) (providers.Slots, error) {
	node, err := p.Node(ctx)
	if err != nil {
		return providers.Slots{}, err
	}
	droplet, found, err := p.byNode.Get(ctx, node.ID)
	switch {
	case err != nil:
		return providers.Slots{}, err
	case !found:
		return providers.Slots{}, fmt.Errorf("%w: the account of the token has no droplet %s", providers.ErrNotFound, node.ID)
	}
	return providers.Slots{Most: maxVolumes, Used: len(droplet.VolumeIDs)}, nil
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
