package hetzner

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

func cloudVolume(id int64, name string) *volume { return &volume{ID: id, Name: name} }

func TestRefusalsAreSentences(t *testing.T) {
	for code, want := range map[string]struct {
		kind  error
		words []string
	}{
		"unauthorized":              {nil, []string{"HCLOUD_TOKEN", "revoked"}},
		"forbidden":                 {nil, []string{"read and write"}},
		"token_readonly":            {nil, []string{"read and write"}},
		"conflict":                  {providers.ErrBusy, nil},
		"maintenance":               {providers.ErrBusy, nil},
		"resource_limit_exceeded":   {providers.ErrNoSpace, []string{"higher limit"}},
		"no_space_left_in_location": {providers.ErrNoSpace, []string{"zone="}},
		"invalid_input":             {providers.ErrInvalid, nil},
		"resource_locked":           {nil, []string{"support"}},
		"server_error":              {nil, nil},
		"never_heard_of":            {nil, nil},
	} {
		inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
			p := w.on(w.node("fsn1"))
			w.cloud.Inject(cloud.Rule{Action: "POST /v1/volumes", Fault: cloud.Fail, Code: code + " in Hetzner's\nown words"})
			_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: size})
			providertest.Sentence(t, err, append(want.words, "Hetzner Cloud refuses the request to create volume \"db\" in location fsn1", "in Hetzner's own words ("+code+")")...)
			for _, kind := range []error{
				providers.ErrNotFound, providers.ErrAmbiguous, providers.ErrInvalid, providers.ErrNoSpace, providers.ErrHeld,
				providers.ErrAttachLimit, providers.ErrBusy, providers.ErrUnavailable,
			} {
				if errors.Is(want.kind, kind) {
					require.ErrorIs(t, err, kind, code)
				} else {
					require.NotErrorIs(t, err, kind, code)
				}
			}
		})
	}
}

func TestATokenThatIsRevokedOrReadsOnlyIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		v := w.create(p, "db")
		w.front.ReadOnly(w.front.Token(server))
		assert.Equal(t, v.ID, w.find(p, "db").ID)
		providertest.Sentence(t, providertest.Attach(t.Context(), p, v.ID), "permission to read and write")
		w.front.Revoke(w.front.Token(server))
		_, err := p.Find(t.Context(), "db")
		require.NotErrorIs(t, err, providers.ErrNotFound)
		providertest.Sentence(t, err, "revoked", "HCLOUD_TOKEN")
	})
}

func TestAnUnknownLocationIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: size, Zone: "ash9"})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "location ash9", "unknown location")
	})
}

func TestNoAnswerIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.onWith(server, httpsim.RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, errReset }))
		_, err := p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrUnavailable)
		providertest.Sentence(t, err, "Hetzner Cloud does not answer the request for a list of volumes", "connection reset", "HCLOUD_ENDPOINT")
	})
}

func TestOnlyWhatCertainlyWritesNoMoreIsEvidence(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(w.node("fsn1"))
		state := func(node string) providers.NodeState {
			s, err := p.NodeState(t.Context(), node)
			require.NoError(t, err)
			return s
		}
		for status, life := range map[string]providers.Life{
			"running": providers.Running, string(hcloud.ServerStatusInitializing): providers.Running, "starting": providers.Running, "stopping": providers.Running,
			"deleting": providers.Running, "migrating": providers.Running, "rebuilding": providers.Running,
			"off": providers.Stopped, "unknown": providers.Unclear, "on fire": providers.Unclear,
		} {
			w.front.Show(server, status)
			assert.Equal(t, providers.NodeState{
				Life: life, Evidence: `Hetzner Cloud says that server ` + server + ` is "` + status + `"`,
				Remedy: map[providers.Life]string{providers.Running: "power off server " + server + " in Hetzner Cloud", providers.Unclear: "detach the volume in Hetzner Cloud"}[life],
			}, state(server))
		}
		w.front.Show(server, "")
		w.cloud.Terminate(server)
		assert.Equal(t, providers.Running, state(server).Life)
		time.Sleep(2 * time.Second)
		assert.Equal(t, providers.NodeState{Life: providers.Gone, Evidence: "Hetzner Cloud knows no server " + server}, state(server))
		for _, node := range []string{"", "node-1", "-5", "007", strings.Repeat("9", 17), "1/../2"} {
			assert.Equal(t, providers.Unclear, state(node).Life, node)
		}
	})
}

func TestTheNodeIsKeptForGood(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("nbg1")
		p := w.on(server)
		remove := w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		_, err := p.Node(t.Context())
		require.ErrorIs(t, err, providers.ErrUnavailable)
		providertest.Sentence(t, err, "metadata service", "HCLOUD_SERVER_ID")
		remove()
		want := providers.Node{ID: server, Zone: "nbg1"}
		n, err := p.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, want, n)
		assert.Empty(t, w.since(), "the API is not asked")
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "500"})
		n, err = p.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, want, n)
	})
}

func TestTheLocationIsFoundWhereverItIsTold(t *testing.T) {
	for zone, asked := range map[string]bool{"nbg1-dc3": false, "nbg1": false, "": true, "<html>": true, "eu-central/nbg1": true} {
		inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
			server := w.node("nbg1")
			inner := w.front.Transport(server)
			p := w.onWith(server, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				if strings.HasSuffix(r.URL.Path, "/availability-zone") {
					return httpsim.Response(r, 200, "text/plain", zone+"\n"), nil
				}
				return inner.RoundTrip(r)
			}))
			n, err := p.Node(t.Context())
			require.NoError(t, err)
			assert.Equal(t, providers.Node{ID: server, Zone: "nbg1"}, n)
			assert.Equal(t, asked, len(w.since()) == 1)
		})
	}
}

func TestTheServerCanBeSet(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("nbg1")
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		set := func(id string) *Provider {
			p, err := New(Config{Cluster: "main", Server: id, Token: cloudtest.Token(tokenSetting, w.front.Token(server)), Transport: w.front.Transport(server)})
			require.NoError(t, err)
			return p
		}
		n, err := set(server).Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, providers.Node{ID: server, Zone: "nbg1"}, n)
		_, err = set("42").Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "no server 42", "HCLOUD_SERVER_ID", "project")
	})
}

func TestSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("secret\n"), 0o600))
	for _, good := range [][]string{
		{"HCLOUD_TOKEN", "secret"},
		{"HCLOUD_TOKEN_FILE", file},
		{"HCLOUD_TOKEN_FILE", file + " is not there yet"},
		{"HCLOUD_TOKEN", "secret", "HCLOUD_SERVER_ID", "42", "HCLOUD_ENDPOINT", "https://api.hetzner.test/v1/", "HCLOUD_METADATA_URL", "http://127.0.0.1:80"},
	} {
		p, err := FromEnv(env(good...), "node", "main", nil, nil)
		require.NoError(t, err)
		assert.Equal(t, []string{"tags", "zone"}, p.Supports())
	}
	for _, bad := range []struct {
		word string
		env  []string
	}{
		{"HCLOUD_TOKEN", nil},
		{"HCLOUD_TOKEN", []string{"HCLOUD_TOKEN", "a", "HCLOUD_TOKEN_FILE", file}},
		{"HCLOUD_SERVER_ID", []string{"HCLOUD_TOKEN", "a", "HCLOUD_SERVER_ID", "node-1"}},
		{"HCLOUD_ENDPOINT", []string{"HCLOUD_TOKEN", "a", "HCLOUD_ENDPOINT", "api.hetzner.cloud"}},
		{"HCLOUD_METADATA_URL", []string{"HCLOUD_TOKEN", "a", "HCLOUD_METADATA_URL", "file:///etc/passwd"}},
	} {
		_, err := FromEnv(env(bad.env...), "node", "main", nil, nil)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, bad.word)
	}
	_, err := FromEnv(env("HCLOUD_TOKEN", "a"), "node", "", nil, nil)
	require.ErrorIs(t, err, providers.ErrInvalid)
	providertest.Sentence(t, err, "CLUSTER")
}

func TestASettingMakesNoNodeAnotherOne(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		self := w.node("nbg1")
		providertest.Identity(t, serverSetting, self, w.node("nbg1"), func(set string) providers.Provider {
			p, err := New(Config{Cluster: "main", Server: set, Token: cloudtest.Token(tokenSetting, w.front.Token(self)), Transport: w.front.Transport(self)})
			require.NoError(t, err)
			return p
		}, func() func() {
			return w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		})
	})
}
