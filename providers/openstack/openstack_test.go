package openstack

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/loop"
	front "github.com/blockvol/blockvol/test/cloud/openstack"
)

// quick are times for a cloud without old reads, to make tests fast.
var quick = times{lag: 2 * time.Millisecond, life: time.Second, patience: 3 * time.Second / 2, ancient: time.Hour}

// keepsTheContract runs the contract suite.
func keepsTheContract(t *testing.T, bubble bool, configure func(t *testing.T) cloud.Config) {
	t.Helper()
	t.Parallel()
	providertest.Run(t, providertest.Harness{Bubble: bubble, New: func(t *testing.T) *providertest.Cloud {
		cfg := configure(t)
		cfg.Zones, cfg.ID = []string{"nova"}, front.ID
		r := cloudtest.NewAccount(t, cfg, func(c *cloud.Cloud) *front.Front {
			return front.New(front.Config{Cloud: c, Types: []string{"__DEFAULT__", "fast"}, Gigabytes: 100000})
		}, func(string) cloud.Instance { return cloud.Instance{} })
		return r.Harness(providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				n := r.Node(node)
				id, secret := r.Front.Credentials(n.ID)
				p, err := New(Config{
					Cluster: cluster, Auth: gophercloud.AuthOptions{IdentityEndpoint: r.URL + "/identity/v3", ApplicationCredentialID: id},
					Secret: cloudtest.Token("SECRET", secret), Metadata: n.Metadata + "/openstack/latest/meta_data.json", Transport: n.Transport, Neighbour: &http.Client{Transport: n.Transport},
				})
				require.NoError(t, err)
				p.times = quick
				return p
			},
			Size:      gib,
			DenyPower: func(_ *testing.T, node string) { r.Front.Forbid(r.Node(node).ID, true) },
			Invalid: []providers.Spec{
				{},
				{Size: gib, Type: "no such type"},
				{Size: gib, Zone: "nowhere"},
				{Size: gib, IOPS: 3000},
				{Size: gib, Throughput: 125},
				{Size: gib, Encrypted: true},
				{Size: gib, KMSKey: "key"},
				{Size: gib, Snapshot: "none"},
				{Size: gib, Snapshot: front.ID(cloud.ASnapshot, 1)},
				{Size: 1<<63 - 1},
				{Size: gib, Tags: map[string]string{"blockvol:cluster": "other"}},
				{Size: gib, Tags: map[string]string{"owner/team": "x"}},
				{Size: gib, Tags: map[string]string{"owner": strings.Repeat("x", 256)}},
				{Size: gib, Tags: map[string]string{"owner": "😀"}},
				{Size: gib, Record: providers.Record{"Upper": "x"}},
				{Size: gib, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
			},
			InvalidChanges: []providers.Change{{Type: "fast"}},
		}, true)
	}})
}

func TestOpenStackKeepsTheContract(t *testing.T) {
	keepsTheContract(t, true, func(*testing.T) cloud.Config { return cloud.Config{} })
}

func TestOpenStackKeepsTheContractWithDisks(t *testing.T) {
	keepsTheContract(t, false, func(t *testing.T) cloud.Config {
		disks := cloudtest.Disks(t)
		disks.ShowAs(loop.Virtio)
		return cloud.Config{Times: cloud.Times{Delete: 20 * time.Millisecond}, Backend: disks}
	})
}
