package linode

import (
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

func TestANodeIsWhatItsMetadataServiceSaysForGood(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		var asked atomic.Int32
		p := w.on(a, func(cfg *Config) {
			cfg.Transport = httpsim.Before(cfg.Transport, func(r *http.Request) {
				if r.URL.Hostname() == "169.254.169.254" {
					asked.Add(1)
				}
			})
		})
		ask := func() {
			if node, err := p.Node(t.Context()); assert.NoError(t, err) {
				assert.Equal(t, providers.Node{ID: a, Zone: region}, node)
			}
		}
		providertest.AtOnce(ask, ask, ask)
		ask()
		assert.EqualValues(t, 2, asked.Load(), "a token, and the answer")
		assert.Empty(t, w.calls())
	})
}

func TestANodeWithoutMetadataIsWhatTheSettingsSay(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail})
		_, err := w.on(a).Node(t.Context())
		require.ErrorIs(t, err, providers.ErrUnavailable)
		providertest.Sentence(t, err, "169.254.169.254", "LINODE_INSTANCE_ID", "status 500")

		node, err := w.on(a, func(cfg *Config) { cfg.Instance = a }).Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, providers.Node{ID: a, Zone: region}, node)
		assert.Equal(t, map[string]int{asking: 1}, w.calls())

		node, err = w.on(a, func(cfg *Config) { cfg.Instance, cfg.Region = a, region }).Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, providers.Node{ID: a, Zone: region}, node)
		assert.Empty(t, w.calls())

		_, err = w.on(a, func(cfg *Config) { cfg.Instance = "1" }).Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "no Linode 1", "LINODE_INSTANCE_ID")
	})
}

func TestANodeOfAnotherRegionThanTheSettingIsAMistake(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		_, err := w.on(a, func(cfg *Config) { cfg.Region = "us-test" }).Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "LINODE_REGION is us-test", "runs in "+region)
	})
}

func TestMetadataThatIsNotLinodesIsNoAnswer(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		for _, fault := range []cloud.Fault{cloud.Garbage, cloud.Truncate, cloud.LoseAnswer} {
			mend := w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: fault})
			_, err := w.on(w.node()).Node(t.Context())
			require.ErrorIs(t, err, providers.ErrUnavailable, "%s", fault)
			providertest.Sentence(t, err, "metadata service", "LINODE_INSTANCE_ID")
			mend()
		}
	})
}

func TestOnlyAnOfflineLinodeIsStopped(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		p := w.on(a)
		for status, life := range map[string]providers.Life{
			"offline": providers.Stopped,
			"running": providers.Running, "booting": providers.Running, "rebooting": providers.Running, "shutting_down": providers.Running,
			"provisioning": providers.Running, "deleting": providers.Running, "migrating": providers.Running, "rebuilding": providers.Running,
			"cloning": providers.Running, "restoring": providers.Running, "resizing": providers.Running,
			"stopped": providers.Unclear, "billing_suspension": providers.Unclear, "levitating\n": providers.Unclear,
		} {
			w.front.Show(b, status)
			state, err := p.NodeState(t.Context(), b)
			require.NoError(t, err)
			assert.Equal(t, life, state.Life, status)
			assert.Contains(t, state.Evidence, "Linode says that instance "+b+" is ")
			assert.NotContains(t, state.Evidence, "\n")
		}
		state, err := p.NodeState(t.Context(), "999")
		require.NoError(t, err)
		assert.Equal(t, providers.NodeState{Life: providers.Gone, Evidence: "Linode knows no instance 999"}, state)
		state, err = p.NodeState(t.Context(), "b")
		require.NoError(t, err)
		assert.Equal(t, providers.Unclear, state.Life)
	})
}

// A token of another account, or of a user who may see little, finds nothing: that is no evidence of anything.
func TestATokenThatDoesNotShowThisNodeIsNoWitness(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		mend := w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		blind := w.on(a, func(cfg *Config) { cfg.Instance, cfg.Region = "7", region })
		state, err := blind.NodeState(t.Context(), "999")
		require.NoError(t, err)
		mend()
		assert.Equal(t, providers.Unclear, state.Life)
		assert.Contains(t, state.Evidence, "another account")

		p := w.on(a)
		_, err = p.Node(t.Context())
		require.NoError(t, err)
		w.cloud.Inject(cloud.Rule{Action: asking, Fault: cloud.Fail})
		_, err = p.NodeState(t.Context(), b)
		require.ErrorIs(t, err, providers.ErrUnavailable)
	})
}

func TestSettingsAreChecked(t *testing.T) {
	good := map[string]string{"LINODE_TOKEN": "secret"}
	for name, c := range map[string]struct {
		set   map[string]string
		words []string
	}{
		"no token":      {map[string]string{"LINODE_TOKEN": ""}, []string{"LINODE_TOKEN", "LINODE_TOKEN_FILE"}},
		"a name for id": {map[string]string{"LINODE_INSTANCE_ID": "node1"}, []string{"LINODE_INSTANCE_ID", "number"}},
		"no URL":        {map[string]string{"LINODE_API_URL": "api.linode.com"}, []string{"LINODE_API_URL"}},
		"no URL, other": {map[string]string{"LINODE_METADATA_URL": "ftp://x"}, []string{"LINODE_METADATA_URL"}},
	} {
		t.Run(name, func(t *testing.T) {
			getenv := func(setting string) string {
				if value, is := c.set[setting]; is {
					return value
				}
				return good[setting]
			}
			_, err := FromEnv(getenv, "", "main", logrus.New(), nil)
			require.ErrorIs(t, err, providers.ErrInvalid)
			providertest.Sentence(t, err, c.words...)
			assert.NotContains(t, err.Error(), "secret")
		})
	}
	_, err := FromEnv(func(setting string) string { return good[setting] }, "", "", logrus.New(), nil)
	require.ErrorIs(t, err, providers.ErrInvalid)
	providertest.Sentence(t, err, "CLUSTER")
}

// Where requests go is this package's business, not that of the SDK's own variables.
func TestTheEnvironmentOfTheSDKChangesNothing(t *testing.T) {
	t.Setenv("LINODE_URL", "https://elsewhere.example")
	t.Setenv("LINODE_API_VERSION", "v9")
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		var hosts []string
		p := w.on(w.node(), func(cfg *Config) {
			cfg.API = "https://api.example/v4"
			cfg.Transport = httpsim.Before(cfg.Transport, func(r *http.Request) { hosts = append(hosts, r.URL.Host+" "+r.URL.Path) })
		})
		_, err := p.List(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{"api.example /v4/volumes"}, hosts)
	})
	set := map[string]string{"LINODE_TOKEN": "secret", "LINODE_URL": "https://api.example"}
	p, err := FromEnv(func(setting string) string { return set[setting] }, "", "main", logrus.New(), nil)
	require.NoError(t, err)
	assert.Equal(t, "https://api.example", p.(*Provider).cfg.API)
}

func TestASettingMakesNoNodeAnotherOne(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		self := w.node()
		providertest.Identity(t, "LINODE_INSTANCE_ID", self, w.node(), func(set string) providers.Provider {
			return w.on(self, func(cfg *Config) { cfg.Instance = set })
		}, func() func() {
			return w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		})
	})
}
