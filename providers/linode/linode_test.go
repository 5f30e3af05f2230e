package linode

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/linode"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

func TestMain(m *testing.M) {
	cloudtest.Unsetenv("LINODE_")
	os.Exit(m.Run())
}

const region = "eu-test"

func newAccount(t *testing.T, cfg cloud.Config) *cloudtest.Account[*linode.Front] {
	t.Helper()
	cfg.Zones, cfg.ID = []string{region, "us-test"}, linode.ID
	r := cloudtest.NewAccount(t, cfg, func(c *cloud.Cloud) *linode.Front {
		return linode.New(linode.Config{Cloud: c, Plain: []string{"us-test"}})
	}, func(string) cloud.Instance { return cloud.Instance{Type: "g6-standard-8", Zone: region} })
	if r.Disks != nil {
		r.Disks.ShowAs(func(disk string) loop.Identity { return loop.SCSI(r.Front.Serial(disk)) })
	}
	return r
}

func harness(r *cloudtest.Account[*linode.Front], faulty bool) *providertest.Cloud {
	const size = 10 * gib
	return r.Harness(providertest.Cloud{
		Provider: func(t *testing.T, node, cluster string) providers.Provider {
			t.Helper()
			n := r.Node(node)
			p, err := New(Config{Cluster: cluster, Token: cloudtest.Token("LINODE_TOKEN", r.Front.Token(n.ID)), API: r.URL, Metadata: n.Metadata, Transport: n.Transport})
			require.NoError(t, err)
			return p
		},
		Size:      size,
		DenyPower: func(_ *testing.T, node string) { r.Front.Restrict(r.Front.Token(r.Node(node).ID), "linodes:read_only") },
		Invalid: []providers.Spec{
			{Size: size, Type: "nvme"},
			{Size: size, IOPS: 100},
			{Size: size, Throughput: 100},
			{Size: size, KMSKey: "key"},
			{Size: size, Snapshot: "1"},
			{Size: sizes.Most*gib + 1},
			{Size: 1<<63 - 1},
			{Size: size, Zone: "nowhere"},
			{Size: size, Zone: "us-test", Encrypted: true},
			{Size: size, Tags: map[string]string{"a": ""}},
			{Size: size, Tags: map[string]string{"long": strings.Repeat("x", 46)}},
			{Size: size, Tags: map[string]string{"bv": "cluster:other"}},
			{Size: size, Tags: map[string]string{"BVR:layout": ""}},
			{Size: size, Tags: map[string]string{"team": "a", "TEAM": "A"}},
			{Size: size, Record: providers.Record{"Upper": "x"}},
			{Size: size, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
		},
		SerialIsName: true, ModifyNeedsDetached: true,
	}, faulty)
}

func TestLinodeKeepsTheContract(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Harness{Bubble: true, New: func(t *testing.T) *providertest.Cloud {
		return harness(newAccount(t, cloud.Config{}), true)
	}})
}

// Changes take a moment here, and a Linode that is powered off loses its volumes, as it may be.
func TestLinodeKeepsTheContractWithDisksAndTime(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
		const moment = 20 * time.Millisecond
		return harness(newAccount(t, cloud.Config{
			Backend: cloudtest.Disks(t), DetachOnStop: true,
			Times: cloud.Times{Create: moment, Delete: moment, Attach: moment, Detach: moment, Modify: moment},
		}), false) // the suite's hanging calls end before a question is asked again
	}})
}
