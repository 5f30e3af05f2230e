// Package aws keeps volumes as EBS volumes of Amazon EC2.
//
// # What is trusted
//
// EC2's reads lag behind its writes ("eventual consistency"), so whatever must not go wrong rests on its writes: a volume
// is attached if AttachVolume took it and held by another node if AttachVolume refused, two nodes that create one name at
// once get one volume because they send the same ClientToken, and a volume in use is not deleted because DeleteVolume
// refuses. What this process has written itself it remembers for as long as a read may not show it; see memory. That something
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
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
	"github.com/blockvol/blockvol/providers/quote"
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
}

// Provider is EC2 as seen from one instance. It keeps the contract of providers.Provider, Snapshotter and Modifier.
type Provider struct {
	cfg     Config
	cluster string

	mu        sync.Mutex
	connected *session // nil before
	sessions  *batch.Asker[*session]

	paces  paces
	memory memory
	slots  slots
	byKey  *batch.Asker[[]types.Volume] // volumes by lookup key
	byID   *batch.Asker[types.Volume]
	nodes  *batch.Asker[types.Instance]
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
	p.byKey = batch.New(p.askByKey, maxFilterValues)
	p.byID = batch.New(p.askByID, maxFilterValues)
	p.nodes = batch.New(p.askNodes, maxFilterValues)
	p.slots.gate = make(chan struct{}, 1)
	p.memory.holds = p.slots.volumes
	return p, nil
}

// maxFilterValues is how many values one filter may have (Amazon EC2 User Guide, "Filter by resource").
const maxFilterValues = 200

// FromEnv is New with the environment's settings: AWS_REGION, and static keys, each also as …_FILE. All others the SDK
// reads by itself. The node's own id is not used: an instance has one.
func FromEnv(getenv func(string) string, _, cluster string, _ logrus.FieldLogger) (providers.Provider, error) {
	keys, err := keysFromFiles(getenv)
	if err != nil {
		return nil, err
	}
	return providers.AsProvider(New(Config{Cluster: cluster, Region: getenv(regionSetting), Credentials: keys}))
}

// Buses returns those on which EBS volumes appear. The disks of Xen instances show no serial, so they cannot be identified.
func (p *Provider) Buses() []string { return []string{"nvme"} }

// Supports lists the options that EBS has: all.
func (p *Provider) Supports() []string {
	return []string{"encrypted", "iops", "kms-key", "snapshot", "tags", "throughput", "type", "zone"}
}

// Node tells which instance this is, by the word of its metadata service.
func (p *Provider) Node(ctx context.Context) (providers.Node, error) {
	s, err := p.session(ctx)
	if err != nil {
		return providers.Node{}, err
	}
	return providers.Node{ID: s.instance, Zone: s.zone}, nil
}

var instanceID = regexp.MustCompile(`^i-[0-9a-f]{8}([0-9a-f]{9})?$`)

// NodeState says Stopped for a stopped instance and Gone for one that is terminated. One on its way there may still write, and
// counts as running. That EC2 does not show an instance is believed when it was asked again a while later: a read may be older
// than an instance.
func (p *Provider) NodeState(ctx context.Context, node string) (providers.NodeState, error) {
	if !instanceID.MatchString(node) {
		return providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf("%q is no id of an EC2 instance", quote.Clip(node))}, ctx.Err()
	}
	asked := time.Now()
	i, found, err := p.nodes.Get(ctx, node)
	if err != nil {
		return providers.NodeState{}, err
	}
	gone := p.memory.see(node, found && i.State != nil, asked)
	switch {
	case gone:
		return providers.Missing(ctx, "EC2", "instance", node, p.Node, func(ctx context.Context, id string) (bool, error) {
			_, found, err := p.nodes.Get(ctx, id)
			return found, err
		})
	case !found || i.State == nil:
		return providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf("EC2 shows no instance %s, and is asked again", node)}, nil
	}
	state := providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf("EC2 says that instance %s is %q", node, i.State.Name)}
	switch i.State.Name {
	case types.InstanceStateNamePending, types.InstanceStateNameRunning, types.InstanceStateNameStopping, types.InstanceStateNameShuttingDown:
		state.Life = providers.Running
	case types.InstanceStateNameStopped:
		state.Life = providers.Stopped
	case types.InstanceStateNameTerminated:
		state.Life = providers.Gone
	}
	return state, nil
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
