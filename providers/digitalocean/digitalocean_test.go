package digitalocean

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

const region = "nyc3"

func newAccount(t *testing.T, cfg cloud.Config, shown front.Config) *cloudtest.Account[*front.Front] {
	t.Helper()
	cfg.Zones, cfg.ID = []string{region, "ams3"}, front.ID
	r := cloudtest.NewAccount(t, cfg, func(c *cloud.Cloud) *front.Front {
		shown.Cloud = c
		return front.New(shown)
	}, func(string) cloud.Instance { return cloud.Instance{} })
	if r.Disks != nil {
		r.Disks.ShowAs(func(disk string) loop.Identity { return loop.SCSI(r.Front.Serial(disk)) })
	}
	return r
}

// contract runs the suite. Most of its time passes in waiting, so the runs are at once.
func contract(t *testing.T, bubble, faulty bool, newAccount func(*testing.T) *cloudtest.Account[*front.Front]) {
	t.Helper()
	providertest.Run(t, providertest.Harness{Bubble: bubble, New: func(t *testing.T) *providertest.Cloud {
		r := newAccount(t)
		return r.Harness(providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				n := r.Node(node)
				p, err := New(Config{Cluster: cluster, Token: cloudtest.Token(settingToken, r.Front.Token(n.ID)), API: r.URL, Metadata: n.Metadata, Transport: n.Transport})
				require.NoError(t, err)
				return p
			},
			Size:         gib,
			SerialIsName: true,
			DenyPower:    func(_ *testing.T, node string) { r.Front.Restrict(r.Front.Token(r.Node(node).ID), "droplet:read") },
			Invalid: []providers.Spec{
				{},
				{Size: 16<<40 + 1},
				{Size: 1<<63 - 1},
				{Size: gib, Type: "fast"},
				{Size: gib, IOPS: 3000},
				{Size: gib, Throughput: 125},
				{Size: gib, Encrypted: true},
				{Size: gib, KMSKey: "key"},
				{Size: gib, Zone: "ams3"},
				{Size: gib, Snapshot: "none"},
				{Size: gib, Snapshot: "8fa70202-873f-11e6-8b68-000f533176b1"},
				{Size: gib, Tags: map[string]string{"no blanks": "x"}},
				{Size: gib, Tags: map[string]string{"x": strings.Repeat("y", 254)}},
				{Size: gib, Tags: map[string]string{"Blockvol": "cluster:other"}},
				{Size: gib, Tags: map[string]string{"": ""}},
				{Size: gib, Record: providers.Record{"Upper": "x"}},
				{Size: gib, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
			},
		}, faulty)
	}})
}

func TestDigitalOceanKeepsTheContract(t *testing.T) {
	t.Parallel()
	contract(t, true, true, func(t *testing.T) *cloudtest.Account[*front.Front] {
		t.Helper()
		return newAccount(t, cloud.Config{}, front.Config{})
	})
}

// What droplet_ids shows while an action is under way, no reference tells: both ways must do.
func TestDigitalOceanKeepsTheContractWhileActionsTakeTheirTime(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]bool{"shown when they are over": false, "shown from the beginning": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract(t, true, false, func(t *testing.T) *cloudtest.Account[*front.Front] {
				t.Helper()
				times := cloud.Times{Attach: 3 * time.Millisecond, Detach: 3 * time.Millisecond}
				return newAccount(t, cloud.Config{Times: times}, front.Config{Early: early})
			})
		})
	}
}

func TestDigitalOceanKeepsTheContractWithDisks(t *testing.T) {
	t.Parallel()
	contract(t, false, true, func(t *testing.T) *cloudtest.Account[*front.Front] {
		t.Helper()
		return newAccount(t, cloud.Config{Backend: cloudtest.Disks(t)}, front.Config{})
	})
}
