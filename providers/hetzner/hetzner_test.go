package hetzner

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
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

// A test must not depend on the environment: not on its settings, nor on its proxies and certificates.
func TestMain(m *testing.M) {
	for _, setting := range os.Environ() {
		name, _, _ := strings.Cut(setting, "=")
		if strings.HasPrefix(name, "HCLOUD_") || strings.HasSuffix(strings.ToUpper(name), "_PROXY") || strings.HasPrefix(name, "SSL_CERT_") {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

func newAccount(t *testing.T, cfg cloud.Config, front hetzner.Config) *cloudtest.Account[*hetzner.Front] {
	t.Helper()
	cfg.Zones, cfg.ID = []string{"fsn1", "nbg1"}, hetzner.ID
	return cloudtest.NewAccount(t, cfg, func(c *cloud.Cloud) *hetzner.Front {
		front.Cloud = c
		return hetzner.New(front)
	}, func(string) cloud.Instance { return cloud.Instance{Zone: "fsn1"} })
}

// env is an environment of names and values.
func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

const size = 10 * gib

func keepsTheContract(t *testing.T, bubble bool, newAccount func(t *testing.T) *cloudtest.Account[*hetzner.Front]) {
	t.Helper()
	t.Parallel()
	providertest.Run(t, providertest.Harness{Bubble: bubble, New: func(t *testing.T) *providertest.Cloud {
		r := newAccount(t)
		return r.Harness(providertest.Cloud{
			Provider: func(t *testing.T, node, cluster string) providers.Provider {
				t.Helper()
				n := r.Node(node)
				p, err := New(Config{
					Cluster: cluster, Token: cloudtest.Token(tokenSetting, r.Front.Token(n.ID)), Endpoint: r.URL + "/v1", Metadata: n.Metadata, Transport: n.Transport,
				})
				require.NoError(t, err)
				return p
			},
			Size:      size,
			DenyPower: func(_ *testing.T, node string) { r.Front.ReadOnly(r.Front.Token(r.Node(node).ID)) },
			Invalid: []providers.Spec{
				{Size: size, Type: "ssd"},
				{Size: size, IOPS: 3000},
				{Size: size, Throughput: 125},
				{Size: size, Encrypted: true},
				{Size: size, KMSKey: "key"},
				{Size: size, Snapshot: "1"},
				{Size: size, Zone: "nowhere1"},
				{Size: 10241 * gib},
				{Size: 1<<63 - 1},
				{Size: size, Tags: map[string]string{"hetzner.cloud/x": "y"}},
				{Size: size, Tags: map[string]string{"blockvol.cluster": "other"}},
				{Size: size, Tags: map[string]string{"x": "ä"}},
				{Size: size, Tags: map[string]string{"x ": "y"}},
				{Size: size, Tags: map[string]string{"a..b/x": "y"}},
				{Size: size, Record: providers.Record{"Upper": "x"}},
				{Size: size, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
			},
		}, true)
	}})
}

func TestHetznerKeepsTheContract(t *testing.T) {
	keepsTheContract(t, true, func(t *testing.T) *cloudtest.Account[*hetzner.Front] {
		t.Helper()
		return newAccount(t, cloud.Config{}, hetzner.Config{})
	})
}

func TestHetznerKeepsTheContractWithDisks(t *testing.T) {
	keepsTheContract(t, false, func(t *testing.T) *cloudtest.Account[*hetzner.Front] {
		t.Helper()
		disks := cloudtest.Disks(t)
		disks.ShowAs(loop.SCSI)
		return newAccount(t, cloud.Config{Backend: disks}, hetzner.Config{})
	})
}

// Hetzner's reference does not say when a volume shows the server that it is being attached to.
func TestHetznerKeepsTheContractIfAnAttachShowsLate(t *testing.T) {
	keepsTheContract(t, true, func(t *testing.T) *cloudtest.Account[*hetzner.Front] {
		t.Helper()
		return newAccount(t, cloud.Config{Times: cloud.Times{Attach: 10 * time.Millisecond, Detach: 10 * time.Millisecond}}, hetzner.Config{Late: true})
	})
}
