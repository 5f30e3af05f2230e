package digitalocean

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// says is a way on which every request is answered so.
func says(status int, kind, body string) http.RoundTripper {
	return httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) { return httpsim.Response(r, status, kind, body), nil })
}

const volume = "506f78a4-e098-11e5-ad9f-000f53306ae1"

// away is a provider whose requests go that way, and that needs no metadata.
func away(t *testing.T, to http.RoundTripper) *Provider {
	t.Helper()
	log, _ := logtest.NewNullLogger()
	p, err := New(Config{Cluster: "main", Token: cloudtest.Token(settingToken, "dop_v1_secret"), Region: region, Droplet: "123", Transport: to, Log: log})
	require.NoError(t, err)
	return p
}

// everything are calls of every kind.
func everything(ctx context.Context, p *Provider) map[string]func() error {
	return map[string]func() error{
		"Find":           func() error { _, err := p.Find(ctx, "db"); return err },
		"List":           func() error { _, err := p.List(ctx); return err },
		"NodeState":      func() error { _, err := p.NodeState(ctx, "124"); return err },
		"Create":         func() error { _, err := p.Create(ctx, providers.Spec{Name: "db", Size: gib}); return err },
		"Adopt":          func() error { _, err := p.Adopt(ctx, volume, providers.Spec{Name: "db"}); return err },
		"Forget":         func() error { return p.Forget(ctx, volume) },
		"Delete":         func() error { return p.Delete(ctx, volume) },
		"Attach":         func() error { return providertest.Attach(ctx, p, volume) },
		"Detach":         func() error { return p.Detach(ctx, volume, "123", false) },
		"Mark":           func() error { return p.Mark(ctx, volume, "uid", "0") },
		"Modify":         func() error { _, err := p.Modify(ctx, volume, providers.Change{Size: gib}); return err },
		"Snapshot":       func() error { _, err := p.Snapshot(ctx, volume, providers.SnapshotSpec{Description: "x"}); return err },
		"DeleteSnapshot": func() error { return p.DeleteSnapshot(ctx, volume) },
	}
}

func TestWhatIsNoAnswerOfDigitalOceansIsNone(t *testing.T) {
	for name, to := range map[string]http.RoundTripper{
		"a page":                  says(http.StatusOK, "text/html", "<html>Please sign in to the network"),
		"a page about nothing":    says(http.StatusNotFound, "text/html", "<html>404"),
		"a page of a gateway":     says(http.StatusBadGateway, "text/html", "<html>502"),
		"JSON of somebody else":   says(http.StatusOK, "application/json", `{"status": "ok"}`),
		"an object without a key": says(http.StatusOK, "application/json", `{}`),
		"half an answer":          says(http.StatusOK, "application/json", `{"volumes": [{"id"`),
		"nothing":                 says(http.StatusOK, "application/json", ""),
		"no connection": httpsim.RoundTripFunc(func(*http.Request) (*http.Response, error) {
			return nil, errors.New("connection refused")
		}),
		"a failure": says(http.StatusInternalServerError, "application/json", `{"id": "server_error", "message": "Unexpected server-side error"}`),
	} {
		synctest.Test(t, func(t *testing.T) {
			defer time.Sleep(time.Minute) // a question to the metadata service may outlive the call that began it
			for call, do := range everything(t.Context(), away(t, to)) {
				err := do()
				require.ErrorIs(t, err, providers.ErrUnavailable, "%s: %s", name, call)
				for _, verdict := range []error{providers.ErrNotFound, providers.ErrInvalid, providers.ErrHeld} {
					require.NotErrorIs(t, err, verdict, "%s: %s", name, call)
				}
				providertest.Sentence(t, err, "DigitalOcean")
			}
		})
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	for name, test := range map[string]struct {
		status  int
		message string
		kind    error
		words   []string
	}{
		"a token that is none":  {401, "Unable to authenticate you.", nil, []string{"Unable to authenticate you", "revoked", settingToken}},
		"a scope that it lacks": {403, "You are not authorized to perform this operation", nil, []string{"lacks a scope", "docs/digitalocean.md"}},
		"a full account":        {422, "volume/snapshot capacity limit exceeded", providers.ErrNoSpace, []string{"capacity limit", "higher limit"}},
		"so by another status":  {403, "volume/snapshot capacity limit exceeded", providers.ErrNoSpace, []string{"capacity limit", "higher limit"}},
		"what it does not take": {422, "something about \x1b[31mcolour\n", providers.ErrInvalid, []string{"something about", "422"}},
		"what nobody expects":   {418, "a teapot", nil, []string{"a teapot", "418"}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
				w.cloud.Inject(cloud.Rule{Action: createVolume, Fault: cloud.Fail, Code: strconv.Itoa(test.status) + " " + test.message})
				_, err := w.on(w.node()).Create(t.Context(), providers.Spec{Name: "db", Size: gib})
				providertest.Sentence(t, err, append(test.words, "the request to make volume")...)
				assert.NotContains(t, err.Error(), "\x1b")
				if test.kind != nil {
					require.ErrorIs(t, err, test.kind)
				}
			})
		})
	}
}

func TestARegionThatIsNoneIsSaid(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		node := w.node()
		p, err := New(Config{Cluster: "main", Token: cloudtest.Token(settingToken, w.front.Token(node)), Region: "xyz1", Transport: w.front.Transport(node)})
		require.NoError(t, err)
		_, err = p.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "xyz1")
	})
}

// A page with status 200 is what a gateway answers a DELETE with that it has not passed on.
func TestAnHTMLPageIsNoSuccess(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib, Record: providers.Record{"uid": "0"}})
		require.NoError(t, err)
		there := w.front.Transport(w.node())
		p = w.of(w.node(), "main", httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodGet {
				return there.RoundTrip(r)
			}
			return says(http.StatusOK, "text/html", "<html>").RoundTrip(r)
		}))
		for call, do := range map[string]func() error{
			"Delete": func() error { return p.Delete(t.Context(), v.ID) },
			"Forget": func() error { return p.Forget(t.Context(), v.ID) },
			"Mark":   func() error { return p.Mark(t.Context(), v.ID, "uid", "1") },
			"Attach": func() error { return providertest.Attach(t.Context(), p, v.ID) },
		} {
			require.ErrorIs(t, do(), providers.ErrUnavailable, call)
		}
	})
}

func TestARevokedTokenIsSaidAndANewOneInItsFileServes(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		old, replaced := w.node(), w.node()
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte(w.front.Token(old)+"\n"), 0o600))
		settings := map[string]string{settingToken + "_FILE": file}
		made, err := FromEnv(func(name string) string { return settings[name] }, "", "main", nil, nil)
		require.NoError(t, err)
		from, is := made.(*Provider)
		require.True(t, is)
		p, err := New(Config{Cluster: "main", Token: from.cfg.Token, Transport: w.front.Transport(old)})
		require.NoError(t, err)
		v := w.create(p, "db")
		w.front.Revoke(w.front.Token(old))
		for call, do := range everything(t.Context(), p) {
			err := do()
			require.Error(t, err, call)
			require.NotErrorIs(t, err, providers.ErrNotFound, call)
			providertest.Sentence(t, err, "revoked", settingToken)
			assert.NotContains(t, err.Error(), w.front.Token(old))
		}
		require.NoError(t, os.WriteFile(file, []byte(w.front.Token(replaced)), 0o600))
		assert.Equal(t, v, w.find(p, "db"))
	})
}

// Whatever answers, the token is in no error, and in no log or observation of a request.
func TestTheTokenIsNowhere(t *testing.T) {
	const secret = "dop_v1_secret"
	echo := httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
		body := `{"id": "` + r.Header.Get("Authorization") + `", "message": "you said ` + r.Header.Get("Authorization") + `", "request_id": "` + secret + `"}`
		return says(http.StatusUnprocessableEntity, "application/json", body).RoundTrip(r)
	})
	for name, to := range map[string]http.RoundTripper{
		"refused": echo,
		"broken":  httpsim.RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New("cannot dial with " + secret) }),
		"page":    says(http.StatusOK, "text/html", secret),
	} {
		synctest.Test(t, func(t *testing.T) {
			log, lines := logtest.NewNullLogger()
			log.SetLevel(logrus.DebugLevel)
			observe := func(r providers.Request) { log.Debugf("%+v", r) }
			p, err := New(Config{Cluster: "main", Token: cloudtest.Token(settingToken, secret), Region: region, Droplet: "123", Transport: to, Log: log, Observe: observe})
			defer time.Sleep(time.Minute) // a question to the metadata service may outlive the call that began it
			require.NoError(t, err)
			for call, do := range everything(t.Context(), p) {
				err := do()
				require.Error(t, err, call)
				assert.NotContains(t, err.Error(), secret, "%s: %s", name, call)
			}
			require.NotEmpty(t, lines.AllEntries())
			for _, line := range lines.AllEntries() {
				text, err := line.String()
				require.NoError(t, err)
				assert.NotContains(t, text, secret)
			}
		})
	}
}

func TestThrottlingIsWaitedOut(t *testing.T) {
	inWorld(t, cloud.Config{Limits: front.Limits}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		for i := range 150 {
			w.create(p, "v"+strconv.Itoa(i))
		}
		assert.Less(t, w.cloud.Throttled()[createVolume]+w.cloud.Throttled()[listVolumes], 60, "it asks when it is told to")
		list, err := p.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, list, 150)
	})
}

func TestOnlyCertainWordsAreEvidence(t *testing.T) {
	for status, life := range map[string]providers.Life{
		"new": providers.Running, "active": providers.Running, "off": providers.Stopped, "archive": providers.Unclear, "on fire": providers.Unclear, "": providers.Unclear,
	} {
		p := away(t, says(http.StatusOK, "application/json", `{"droplet": {"id": 124, "status": "`+status+`"}}`))
		state, err := p.NodeState(t.Context(), "124")
		require.NoError(t, err)
		assert.Equal(t, providers.NodeState{
			Life: life, Evidence: `DigitalOcean says that droplet 124 is "` + status + `"`,
			Remedy: map[providers.Life]string{providers.Running: "power off droplet 124 in DigitalOcean", providers.Unclear: "detach the volume in DigitalOcean"}[life],
		}, state)
	}
	missing := says(http.StatusNotFound, "application/json", `{"id": "not_found", "message": "The resource you were accessing could not be found."}`)
	p := away(t, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/123") {
			return httpsim.Response(r, http.StatusOK, "application/json", `{"droplet": {"id": 123, "status": "active"}}`), nil
		}
		return missing.RoundTrip(r)
	}))
	state, err := p.NodeState(t.Context(), "124")
	require.NoError(t, err)
	assert.Equal(t, providers.Gone, state.Life)
	state, err = away(t, missing).NodeState(t.Context(), "124")
	require.NoError(t, err)
	assert.Equal(t, providers.Unclear, state.Life, "the token does not see this droplet either")
	for _, id := range []string{"", "no-such-node", "0", "-1", "124/../125", strings.Repeat("9", 30)} {
		state, err := p.NodeState(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, providers.Unclear, state.Life, id)
	}
	// Another droplet's answer is none.
	_, err = away(t, says(http.StatusOK, "application/json", `{"droplet": {"id": 125, "status": "off"}}`)).NodeState(t.Context(), "124")
	require.ErrorIs(t, err, providers.ErrUnavailable)
}

func TestSettingsAreChecked(t *testing.T) {
	good := map[string]string{settingToken: "dop_v1_secret"}
	for name, test := range map[string]struct {
		change  map[string]string
		cluster string
		words   []string
	}{
		"good":               {nil, "main", nil},
		"all":                {map[string]string{settingRegion: "nyc3", settingDroplet: "123", settingAPI: "http://127.0.0.1:1/", settingMetadata: "http://127.0.0.1:2"}, "main", nil},
		"no cluster":         {nil, "", []string{"CLUSTER"}},
		"long cluster":       {nil, strings.Repeat("x", 256), []string{"CLUSTER"}},
		"no token":           {map[string]string{settingToken: ""}, "main", []string{settingToken, settingToken + "_FILE"}},
		"two tokens":         {map[string]string{settingToken + "_FILE": "/data/state/token"}, "main", []string{settingToken + "_FILE"}},
		"a wrong region":     {map[string]string{settingRegion: "New York"}, "main", []string{settingRegion, "nyc3"}},
		"a name for an id":   {map[string]string{settingDroplet: "web-1"}, "main", []string{settingDroplet, "number"}},
		"no URL":             {map[string]string{settingAPI: "api.digitalocean.com"}, "main", []string{settingAPI}},
		"a URL with a token": {map[string]string{settingAPI: "https://dop_v1_secret@api.digitalocean.com"}, "main", []string{settingAPI}},
		"no URL of metadata": {map[string]string{settingMetadata: "ftp://169.254.169.254"}, "main", []string{settingMetadata}},
	} {
		p, err := FromEnv(func(setting string) string {
			if value, is := test.change[setting]; is {
				return value
			}
			return good[setting]
		}, "ignored", test.cluster, nil, nil)
		if test.words == nil {
			require.NoError(t, err, name)
			assert.NotNil(t, p, name)
			continue
		}
		require.ErrorIs(t, err, providers.ErrInvalid, name)
		providertest.Sentence(t, err, test.words...)
		assert.NotContains(t, err.Error(), "dop_v1_secret")
		assert.Nil(t, p, name)
	}
}

func TestANodeIsAskedForOnceAndKept(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		node, asked := w.node(), 0
		p := w.of(node, "main", httpsim.Before(w.front.Transport(node), func(r *http.Request) {
			if r.URL.Hostname() == "169.254.169.254" {
				assert.Empty(t, r.Header.Get("Authorization"), "the token is not for it")
				asked++
			}
		}))
		remove := w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Garbage})
		_, err := p.Node(t.Context())
		require.ErrorIs(t, err, providers.ErrUnavailable)
		providertest.Sentence(t, err, "metadata", "sign in", settingDroplet)
		remove()
		remove = w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Hang})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err = p.Node(ctx)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		remove()
		asked = 0
		want := providers.Node{ID: node, Zone: region}
		providertest.AtOnce(slicesOf(5, func() {
			got, err := p.Node(t.Context())
			if assert.NoError(t, err) {
				assert.Equal(t, want, got)
			}
		})...)
		assert.Equal(t, 2, asked)
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail})
		got, err := p.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, want, got)

		told := away(t, w.front.Transport(node))
		got, err = told.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, providers.Node{ID: "123", Zone: region}, got)
	})
}

func slicesOf(n int, do func()) []func() {
	all := make([]func(), n)
	for i := range all {
		all[i] = do
	}
	return all
}

func TestASettingMakesNoNodeAnotherOne(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		self := w.node()
		providertest.Identity(t, settingDroplet, self, w.node(), func(set string) providers.Provider {
			p, err := New(Config{Cluster: "main", Droplet: set, Region: region, Token: cloudtest.Token(settingToken, w.front.Token(self)), Transport: w.front.Transport(self)})
			require.NoError(t, err)
			return p
		}, func() func() {
			return w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		})
	})
}
