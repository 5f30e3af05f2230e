package aws

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

func TestMain(m *testing.M) {
	cloudtest.Unsetenv("AWS_")
	os.Exit(m.Run())
}

const region = "eu-test-1"

// front is EC2 with a normal metadata service.
type front struct{ *ec2.Front }

func (f front) Metadata(instance string) http.Handler {
	return f.Front.Metadata(instance, ec2.MetadataOptions{})
}

func TestAWSKeepsTheContract(t *testing.T) {
	keepsTheContract(t, true, func(*testing.T) cloud.Backend { return nil })
}

func TestAWSKeepsTheContractWithDisks(t *testing.T) {
	keepsTheContract(t, false, func(t *testing.T) cloud.Backend {
		t.Helper()
		return cloudtest.Disks(t)
	})
}

func keepsTheContract(t *testing.T, bubble bool, disks func(*testing.T) cloud.Backend) {
	t.Helper()
	t.Parallel()
	providertest.Run(t, providertest.Harness{Bubble: bubble, New: func(t *testing.T) *providertest.Cloud {
		cfg := cloud.Config{
			Zones: []string{region + "a", region + "b"}, Times: cloud.Times{Delete: 20 * time.Millisecond}, Backend: disks(t),
		}
		r := cloudtest.NewAccount(t, cfg, func(c *cloud.Cloud) front {
			return front{ec2.New(ec2.Config{Cloud: c, Region: region, Account: "123456789012"})}
		}, func(node string) cloud.Instance {
			zone := region + "a"
			if strings.HasPrefix(node, "far") {
				zone = region + "b"
			}
			return cloud.Instance{Type: "m5.large", Zone: zone, RootDevice: "/dev/xvda"}
		})
		return r.Harness(providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				n := r.Node(node)
				p, err := New(Config{Cluster: cluster, Endpoint: r.URL, Metadata: n.Metadata, HTTPClient: &http.Client{Transport: n.Transport}})
				require.NoError(t, err)
				return p
			},
			Size: gib, ShowsRemoved: true,
			DenyPower: func(_ *testing.T, node string) {
				for _, action := range []string{"StopInstances", "StartInstances"} {
					r.Cloud.Inject(cloud.Rule{Action: action, Caller: r.Node(node).ID, Fault: cloud.Fail, Code: "UnauthorizedOperation"})
				}
			},
			Invalid: []providers.Spec{
				{Size: gib, Type: "gp9"},
				{Size: gib, Type: "gp3", IOPS: 2999},
				{Size: gib, Type: "io2", IOPS: 100}, // 4 GiB at least
				{Size: 4 * gib, Type: "io2"},
				{Size: gib, Type: "gp2", IOPS: 3000},
				{Size: gib, Throughput: 126 * 100},
				{Size: gib, Zone: "nowhere-1a"},
				{Size: gib, Snapshot: "snap-none"},
				{Size: 1<<63 - 1},
				{Size: gib, Tags: map[string]string{"aws:x": "y"}},
				{Size: gib, Tags: map[string]string{"blockvol:cluster": "other"}},
				{Size: gib, Record: providers.Record{"Upper": "x"}},
				{Size: gib, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
			},
		}, true)
	}})
}
