// Package aws keeps volumes as EBS volumes of Amazon EC2.
//
// # What is trusted
//
// EC2's reads lag behind its writes ("eventual consistency"), so whatever must not go wrong rests on its writes: a volume
// is attached if AttachVolume took it and held by another node if AttachVolume refused, two nodes that create one name at
// once get one volume because they send the same ClientToken, and a volume in use is not deleted because DeleteVolume
// refuses. What this process has written itself it remembers for as long as a read may not show it (package managed). That something
// is not there, a read proves only if it was asked when it must show it: until then the question is asked again.
//
// # What it costs
//
// A mount is one DescribeVolumes and one AttachVolume, an unmount one DetachVolume, besides what the driver asks to be sure.
// Questions that come while one is under way share the next call (package batch). Throttling is waited out per API, by one
// caller at a time (package pace), as long as the caller waits.
//
// # How a volume is known
//
// By its tags, which EC2 stores with any characters: see tags.go. The names of devices say nothing; a disk is recognised
// by the serial of its NVMe device, which is the volume's id without the dash (Amazon EBS User Guide, "Identify the EBS
// device").
package aws

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"sync"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
	"github.com/blockvol/blockvol/providers/managed"
)

// Config is what a Provider needs to know. Only Cluster has no default; what is empty, the SDK finds in the environment,
// in its shared files, and at the instance's metadata service.
type Config struct {
	Cluster     string
	Region      string                  // default: the instance's
	Endpoint    string                  // URL of EC2
	Metadata    string                  // URL of the metadata service
	Credentials sdk.CredentialsProvider // default: the SDK's chain, with the instance's role last
	HTTPClient  *http.Client            // for EC2 and the metadata service
	Observe     providers.Observer      // told of each request to EC2; may be nil
}

// Provider is EC2 as seen from one instance. It keeps the contract of providers.Provider, Snapshotter and Modifier.
type Provider struct {
	*managed.Provider[types.Volume]
	*managed.Snapshots[types.Volume, types.Snapshot]
	cfg     Config
	cluster string

	mu        sync.Mutex
	connected *session // nil before
	sessions  *batch.Batcher[*session]

	paces  paces
	memory memory
	places sync.Map // by instance: its *slots
	byID   *batch.Batcher[types.Volume]
	nodes  *batch.Batcher[types.Instance]
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)
)

// New checks the configuration. It calls nobody.
func New(cfg Config) (*Provider, error) {
	if cfg.Cluster == "" {
		return nil, fmt.Errorf("%w: the name of the cluster is empty: set CLUSTER", providers.ErrInvalid)
	}
	p := &Provider{cfg: cfg, cluster: cfg.Cluster}
	p.sessions = batch.New(p.askSession, 1)
	p.byID = batch.New(p.askByID, maxFilterValues)
	p.nodes = batch.New(p.askNodes, maxFilterValues)
	p.Provider = managed.New(managed.Cloud[types.Volume]{
		Name: "EC2", Machine: "instance", StopWord: "stop", Cluster: cfg.Cluster,
		Options: []string{"encrypted", "iops", "kms-key", "snapshot", "tags", "throughput", "type", "zone"}, // all
		Buses:   []string{"nvme"},                                                                           // the disks of Xen instances show no serial, so they cannot be identified
		Zone:    "zone", Unname: "the tag " + tagCluster,
		IDForm: "which looks like vol-0123456789abcdef0", IsID: volumeID.MatchString, IsNode: instanceID.MatchString,
		Stale: true, MarksAlone: true, ShowsOperations: true, Attach: p.attach, Detach: p.detach,
		Self: p.identified, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: maxFilterValues, All: p.all, Get: p.get,
		CheckSpec: checkSpec, Create: p.create, Await: p.await,
		Mark: p.mark, Claim: p.claim, Release: p.release, Delete: p.remove,
	})
	p.Snapshots = managed.NewSnapshots(p.Provider, p.snapshots())
	return p, nil
}

// maxFilterValues is how many values one filter may have (Amazon EC2 User Guide, "Filter by resource").
const maxFilterValues = 200

// FromEnv is New with the environment's settings: AWS_REGION, and static keys, each also as …_FILE. All others the SDK
// reads by itself. The node's own id is not used: an instance has one.
func FromEnv(getenv func(string) string, _, cluster string, _ logrus.FieldLogger, observe providers.Observer) (providers.Provider, error) {
	keys, err := keysFromFiles(getenv)
	if err != nil {
		return nil, err
	}
	return providers.AsProvider(New(Config{Cluster: cluster, Region: getenv(regionSetting), Credentials: keys, Observe: observe}))
}

// identified tells which instance this is, by the word of its metadata service.
func (p *Provider) identified(ctx context.Context) (providers.Node, error) {
	s, err := p.session(ctx)
	if err != nil {
		return providers.Node{}, err
	}
	return providers.Node{ID: s.instance, Zone: s.zone}, nil
}

var instanceID = regexp.MustCompile(`^i-[0-9a-f]{8}([0-9a-f]{9})?$`)

// status says Stopped for a stopped instance and Gone for one that is terminated. One on its way there may still write, and counts as
// running.
func (p *Provider) status(ctx context.Context, node string) (string, providers.Life, error) {
	i, found, err := p.nodes.Get(ctx, node)
	switch {
	case err != nil:
		return "", providers.Unclear, err
	case !found || i.State == nil:
		return "", providers.Unclear, providers.ErrNotFound
	}
	life := providers.Unclear
	switch i.State.Name {
	case types.InstanceStateNamePending, types.InstanceStateNameRunning, types.InstanceStateNameStopping, types.InstanceStateNameShuttingDown:
		life = providers.Running
	case types.InstanceStateNameStopped:
		life = providers.Stopped
	case types.InstanceStateNameTerminated:
		life = providers.Gone
	}
	return strconv.Quote(string(i.State.Name)), life, nil
}

func (p *Provider) askNodes(ctx context.Context, ids []string) (map[string]types.Instance, error) {
	// A filter, since one unknown id among InstanceIds fails the whole call.
	all, err := pages(ctx, p, "DescribeInstances", func(ctx context.Context, api *ec2.Client, next *string) ([]types.Reservation, *string, error) {
		page, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{
			Filters: []types.Filter{filter("instance-id", ids...)}, NextToken: next,
		})
		if err != nil {
			return nil, nil, err
		}
		return page.Reservations, page.NextToken, nil
	})
	found := make(map[string]types.Instance)
	for _, r := range all {
		for _, i := range r.Instances {
			found[sdk.ToString(i.InstanceId)] = i
		}
	}
	return found, err
}

func filter(name string, values ...string) types.Filter {
	return types.Filter{Name: &name, Values: values}
}
