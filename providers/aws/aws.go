// Package aws implements the provider contract with EBS volumes of Amazon EC2.
//
// # Consistency
//
// EC2's reads may be older than the last write ("eventual consistency"), so decisions rest on its writes: AttachVolume succeeds,
// or is refused because another instance holds the volume; nodes that create the same name send the same ClientToken and get one
// volume; DeleteVolume is refused while the volume is in use. Package managed remembers what this process has written for as long
// as reads may not show it. A read proves that something does not exist only if it is recent enough to show it; until then it
// is repeated.
//
// # Requests
//
// A mount is one DescribeVolumes and one AttachVolume, an unmount one DetachVolume, besides the driver's checks. Concurrent reads
// share requests (package batch). EC2 throttles each action separately: one caller at a time retries (package pace), until
// its context ends.
//
// # Identity
//
// Tags identify a volume, see tags.go. A disk is identified by the serial of its NVMe device, which is the volume's ID without
// the dash (Amazon EBS User Guide, "Identify the EBS device"). Device names identify nothing.
package aws

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
	"github.com/blockvol/blockvol/providers/keymutex"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/recent"
)

// Config configures a Provider. Only Cluster is required. For an empty field the SDK uses the environment, its shared files and
// the instance's metadata service.
type Config struct {
	Cluster     string
	Region      string                  // default: the instance's
	Endpoint    string                  // URL of EC2
	Metadata    string                  // URL of the metadata service
	Credentials sdk.CredentialsProvider // default: the SDK's chain, which ends with the instance's role
	HTTPClient  *http.Client            // for EC2 and the metadata service
	Observe     providers.Observer      // called for each request to EC2; may be nil
}

// Provider is EC2 as seen from one instance. It implements providers.Provider, Snapshotter and Modifier.
type Provider struct {
	*managed.Provider[types.Volume]
	*managed.Snapshots[types.Volume, types.Snapshot]
	cfg     Config
	session *batch.Cached[*session]
	paces   sync.Map                      // by action: its *pace.Pace
	ahead   atomic.Pointer[time.Duration] // how far EC2's clock was ahead in its last answer
	byID    *batch.Batcher[types.Volume]
	nodes   *batch.Batcher[types.Instance]

	usedTokens   recent.Map[token, time.Time] // ClientTokens that create no volume before this time
	slots        sync.Map                     // by instance: its *slots
	readingSlots keymutex.KeyMutex            // by instance
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)
	_ providers.Examiner    = (*Provider)(nil)
	_ providers.Fencer      = (*Provider)(nil)
)

// maxFilterValues is the number of values that one filter may have (Amazon EC2 User Guide, "Filter by resource").
const maxFilterValues = 200

// New checks the configuration. It makes no request.
func New(cfg Config) (*Provider, error) {
	if cfg.Cluster == "" {
		return nil, fmt.Errorf("%w: the name of the cluster is empty: set CLUSTER", providers.ErrInvalid)
	}
	p := &Provider{cfg: cfg}
	p.session = batch.Cache("which instance this is", p.connect)
	p.byID = batch.New(p.volumesByID, maxFilterValues)
	p.nodes = batch.New(p.instancesByID, maxFilterValues)
	p.Provider = managed.New(managed.Cloud[types.Volume]{
		Name: "EC2", Machine: "instance", StopWord: "stop", Cluster: cfg.Cluster,
		Options: []string{"encrypted", "iops", "kms-key", "snapshot", "tags", "throughput", "type", "zone"}, // all
		Buses:   []string{"nvme"},                                                                           // disks of Xen instances show no serial
		Zone:    "zone", Unname: "the tag " + tagCluster,
		IDForm: "which looks like vol-0123456789abcdef0", IsID: volumeID.MatchString, IsNode: instanceID.MatchString,
		Stale: true, MarksAlone: true, ShowsOperations: true, Attach: p.attach, Detach: p.detach,
		Manual: "docs/aws.md", Clock: p.clock, Permissions: p.tryPermissions,
		TryFence: p.tryFence, PowerOff: p.powerOff, PowerOn: p.powerOn,
		Self: p.self, Status: p.status,
		Show: p.show, Named: p.named, NamesAtOnce: maxFilterValues, All: p.all, Held: p.held, Known: p.known, Get: p.get,
		CheckSpec: checkSpec, Create: p.create, Await: p.await,
		Mark: p.mark, Tags: ownTags, Claim: p.claim, Release: p.release, Delete: p.remove,
		Plugins: map[string]managed.Plugin[types.Volume]{"rexray": {List: p.ofPlugin, Name: pluginName}},
	})
	p.Snapshots = managed.NewSnapshots(p.Provider, p.snapshots())
	return p, nil
}

// FromEnv is New with the settings in the environment: AWS_REGION, and static keys, each also as …_FILE. The SDK itself reads
// its other settings. The node ID is ignored, since an instance has its own.
func FromEnv(getenv func(string) string, _, cluster string, _ logrus.FieldLogger, observe providers.Observer) (providers.Provider, error) {
	keys, err := keysFromFiles(getenv)
	if err != nil {
		return nil, err
	}
	return providers.AsProvider(New(Config{Cluster: cluster, Region: getenv(regionSetting), Credentials: keys, Observe: observe}))
}

var instanceID = regexp.MustCompile(`^i-[0-9a-f]{8}([0-9a-f]{9})?$`)

// self returns this instance, according to its metadata service.
func (p *Provider) self(ctx context.Context) (providers.Node, error) {
	s, err := p.session.Get(ctx)
	if err != nil {
		return providers.Node{}, err
	}
	return providers.Node{ID: s.instance, Zone: s.zone}, nil
}

// status returns Stopped for a stopped instance and Gone for a terminated one. An instance that is stopping or shutting down may
// still write: it is Running.
func (p *Provider) status(ctx context.Context, node string) (managed.NodeStatus, error) {
	i, found, err := p.nodes.Get(ctx, node)
	switch {
	case err != nil:
		return managed.NodeStatus{}, err
	case !found || i.State == nil:
		return managed.NodeStatus{}, providers.ErrNotFound
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
	return managed.NodeStatus{
		Word: strconv.Quote(string(i.State.Name)), Life: life, Addresses: managed.Addresses(sdk.ToString(i.PrivateIpAddress)),
		Stopping: i.State.Name == types.InstanceStateNameStopping || i.State.Name == types.InstanceStateNameShuttingDown,
	}, nil
}

// instancesByID uses a filter, since one unknown ID among InstanceIds fails the whole request.
func (p *Provider) instancesByID(ctx context.Context, ids []string) (map[string]types.Instance, error) {
	all, err := pages(ctx, p, (*ec2.Client).DescribeInstances, func(next *string) *ec2.DescribeInstancesInput {
		return &ec2.DescribeInstancesInput{Filters: filter("instance-id", ids...), NextToken: next}
	}, func(page *ec2.DescribeInstancesOutput) ([]types.Reservation, *string) {
		return page.Reservations, page.NextToken
	})
	found := make(map[string]types.Instance)
	for _, r := range all {
		for _, i := range r.Instances {
			found[sdk.ToString(i.InstanceId)] = i
		}
	}
	return found, err
}

func filter(name string, values ...string) []types.Filter {
	return []types.Filter{{Name: &name, Values: values}}
}
