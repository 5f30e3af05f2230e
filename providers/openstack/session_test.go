package openstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/volumes"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/providers/secret"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	front "github.com/blockvol/blockvol/test/cloud/openstack"
)

func volumeOf(status, server string) volumes.Volume {
	v := volumes.Volume{ID: "v", Status: status}
	if server != "" {
		v.Attachments = []volumes.Attachment{{ServerID: server}}
	}
	return v
}

func TestAnExpiredTokenIsReplacedOnce(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, func(t *testing.T, w *world) {
		server := w.node()
		link := &transport{RoundTripper: w.front.Transport(server)}
		p := w.onBy(server, link)
		v := w.create(p, "db")
		for _, expire := range []func(){func() { w.front.Expire(server) }, func() { time.Sleep(2 * time.Hour) }} {
			expire()
			link.calls()
			var calls []func()
			for range 5 {
				calls = append(calls, func() { assert.NoError(t, p.Mark(t.Context(), v.ID, "layout", "data")) })
			}
			providertest.AtOnce(calls...)
			logins := 0
			for _, call := range link.calls() {
				if strings.HasSuffix(call, "/auth/tokens") {
					logins++
				}
			}
			assert.Equal(t, 1, logins)
		}
	})
}

func TestAWrongClockDoesNotMatter(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, time.Hour, -72 * time.Hour, 72 * time.Hour} {
		inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
			p := w.on(w.node())
			v := w.create(p, "db")
			w.attach(p, v)
			time.Sleep(3 * time.Hour)
			_, err := p.Find(t.Context(), "db")
			require.NoError(t, err)
		}, func(cfg *front.Config) { cfg.Now = func() time.Time { return time.Now().Add(off) } })
	}
}

func TestRevokedCredentialsAreReported(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		p := w.on(server)
		v := w.create(p, "db")
		w.front.Revoke(server)
		for _, p := range []*Provider{p, w.on(server)} {
			_, err := p.Find(t.Context(), "db")
			sentence(t, err, "credentials are not accepted", "revoked", "Keystone")
			require.NotErrorIs(t, err, providers.ErrNotFound)
			sentence(t, p.Mark(t.Context(), v.ID, "layout", "data"), "revoked")
		}
		w.front.Restore(server)
		_, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
	})
}

// settingsOf returns settings for a server.
func (w *world) settingsOf(server string) (application, password map[string]string) {
	id, secret := w.front.Credentials(server)
	application = map[string]string{
		"OS_AUTH_URL": "http://keystone.test/identity", "OS_APPLICATION_CREDENTIAL_ID": id, "OS_APPLICATION_CREDENTIAL_SECRET": secret, "OS_INSTANCE_ID": server,
	}
	password = map[string]string{
		"OS_AUTH_URL": "http://keystone.test/identity/v3", "OS_USERNAME": front.UserOf(server), "OS_PASSWORD": secret, "OS_PROJECT_NAME": "demo",
		"OS_USER_DOMAIN_NAME": "Default", "OS_PROJECT_DOMAIN_ID": "default", "OS_REGION_NAME": "RegionOne", "OS_INTERFACE": "internalURL", "OS_INSTANCE_ID": server,
	}
	return application, password
}

func with(settings map[string]string, pairs ...string) map[string]string {
	settings = maps.Clone(settings)
	for i := 0; i+1 < len(pairs); i += 2 {
		if settings[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(settings, pairs[i])
		}
	}
	return settings
}

// fromEnv is FromEnv with the transport of the simulated cloud.
func (w *world) fromEnv(server string, settings map[string]string) (*Provider, error) {
	p, err := FromEnv(func(name string) string { return settings[name] }, "", "main", logrus.New(), nil)
	if err != nil {
		return nil, err
	}
	made := p.(*Provider) //nolint:forcetypeassert // it is ours
	made.cfg.Transport, made.cfg.Neighbour, made.cfg.Log = w.front.Transport(server), &http.Client{Transport: w.front.Transport(server)}, nil
	return New(made.cfg)
}

func TestSettings(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		application, password := w.settingsOf(server)
		file := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(file, []byte(password["OS_PASSWORD"]+"\n"), 0o600))
		for name, settings := range map[string]map[string]string{
			"an application credential": application,
			"one by name": with(application, "OS_APPLICATION_CREDENTIAL_ID", "", "OS_APPLICATION_CREDENTIAL_NAME", application["OS_APPLICATION_CREDENTIAL_ID"],
				"OS_USERNAME", front.UserOf(server)),
			"a password":             password,
			"a project by id":        with(password, "OS_PROJECT_NAME", "", "OS_PROJECT_ID", front.Project),
			"domains by default":     with(password, "OS_USER_DOMAIN_NAME", "", "OS_PROJECT_DOMAIN_ID", ""),
			"a password in a file":   with(password, "OS_PASSWORD", "", "OS_PASSWORD_FILE", file),
			"a credential in a file": with(application, "OS_APPLICATION_CREDENTIAL_SECRET", "", "OS_APPLICATION_CREDENTIAL_SECRET_FILE", file),
		} {
			p, err := w.fromEnv(server, settings)
			require.NoError(t, err, name)
			node, err := p.Node(t.Context())
			require.NoError(t, err, name)
			assert.Equal(t, server, node.ID)
			list, err := p.List(t.Context())
			require.NoError(t, err, name)
			assert.Empty(t, list)
		}
		for setting, settings := range map[string]map[string]string{
			"OS_AUTH_URL":                      with(application, "OS_AUTH_URL", "keystone:5000"),
			"OS_INTERFACE":                     with(application, "OS_INTERFACE", "secret"),
			"OS_INSTANCE_ID":                   with(application, "OS_INSTANCE_ID", "i-1"),
			"OS_APPLICATION_CREDENTIAL_SECRET": with(application, "OS_APPLICATION_CREDENTIAL_SECRET", ""),
			"OS_USERNAME":                      with(password, "OS_USERNAME", ""),
			"OS_PASSWORD_FILE":                 with(password, "OS_PASSWORD_FILE", file),
			"OS_PROJECT_ID":                    with(password, "OS_PROJECT_NAME", ""),
			"OS_CACERT":                        with(password, "OS_CACERT", file),
		} {
			_, err := w.fromEnv(server, settings)
			require.ErrorIs(t, err, providers.ErrInvalid, setting)
			sentence(t, err, setting)
		}
		for setting, settings := range map[string]map[string]string{
			"OS_REGION_NAME": with(password, "OS_REGION_NAME", "RegionTwo"),
			"OS_PASSWORD":    with(password, "OS_PASSWORD", "wrong"),
			"OS_AUTH_URL":    with(application, "OS_AUTH_URL", "http://keystone.test/nowhere"),
		} {
			p, err := w.fromEnv(server, settings)
			require.NoError(t, err)
			_, err = p.List(t.Context())
			sentence(t, err, setting)
		}
	})
}

func TestRefusalsAreSentences(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		link := &transport{RoundTripper: w.front.Transport(server)}
		p := w.onBy(server, link)
		_, err := p.List(t.Context())
		require.NoError(t, err)
		for _, c := range []struct {
			status int
			body   string
			is     error
			words  []string
		}{
			{403, `{"forbidden":{"code":403,"message":"Policy doesn't allow volume:get_all to be performed."}}`, nil, []string{"Policy", "role member"}},
			{413, `{"overLimit":{"code":413,"message":"VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota 'volumes'."}}`, providers.ErrNoSpace, []string{"(10)", "quota"}},
			{400, `{"badRequest":{"code":400,"message":"Something is wrong"}}`, nil, []string{"Something is wrong"}},
			{500, `{"computeFault":{"code":500,"message":"The server has either erred"}}`, providers.ErrUnavailable, []string{"erred"}},
			{503, "<html>Service unavailable</html>", providers.ErrUnavailable, []string{"503"}},
			{200, "<html>Please sign in</html>", providers.ErrUnavailable, []string{"OS_AUTH_URL"}},
			{404, "404 page not found", providers.ErrUnavailable, []string{"404"}},
		} {
			link.do(func(r *http.Request, _ string) (*http.Response, error) {
				return httpsim.Response(r, c.status, "application/json", c.body), nil
			})
			_, err := p.Find(t.Context(), "db")
			sentence(t, err, c.words...)
			if c.is != nil {
				require.ErrorIs(t, err, c.is, "%d", c.status)
			}
			require.NotErrorIs(t, err, providers.ErrNotFound)
		}
		link.do(func(*http.Request, string) (*http.Response, error) {
			return nil, errors.New("connection reset by peer")
		})
		_, err = p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrUnavailable)
		sentence(t, err, "reset", "OS_AUTH_URL")
	})
}

func TestAnExhaustedQuotaIsReported(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: 8 * gib})
		require.NoError(t, err)
		_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: 3 * gib})
		require.ErrorIs(t, err, providers.ErrNoSpace)
		sentence(t, err, "quota")
		_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 11 * gib})
		require.ErrorIs(t, err, providers.ErrNoSpace)
	}, func(cfg *front.Config) { cfg.Gigabytes = 10 })
}

// If the caller that began a login is cancelled, the login continues for the others.
func TestALoginContinuesForOtherCallers(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 10 * time.Second}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var ended atomic.Bool
		providertest.AtOnce(func() {
			_, err := p.List(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			ended.Store(true)
		}, func() {
			time.Sleep(time.Second / 2)
			_, err := p.List(t.Context())
			require.NoError(t, err)
			assert.True(t, ended.Load())
		})
	})
}

func TestAServerWithoutMetadataNeedsTheSetting(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		p := w.on(server)
		for _, fault := range []cloud.Fault{cloud.Fail, cloud.Garbage, cloud.Truncate, cloud.LoseAnswer, cloud.Hang} {
			mend := w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: fault})
			_, err := p.Node(t.Context())
			require.ErrorIs(t, err, providers.ErrUnavailable, fault)
			sentence(t, err, "OS_INSTANCE_ID")
			mend()
		}
		node, err := p.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, server, node.ID)
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail})
		again, err := p.Node(t.Context())
		require.NoError(t, err, "it is cached")
		assert.Equal(t, node, again)
	})
}

func TestNoSecretIsLoggedOrObserved(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		var lines strings.Builder
		log := logrus.New()
		log.SetOutput(&lines)
		log.SetLevel(logrus.DebugLevel)
		id, password := w.front.Credentials(server)
		p := w.on(server)
		p.cfg.Log = log
		p.cfg.Observe = func(r providers.Request) { fmt.Fprintf(&lines, "%+v\n", r) }
		p, err := New(p.cfg)
		require.NoError(t, err)
		w.create(p, "db")
		assert.Contains(t, lines.String(), "/auth/tokens")
		assert.NotContains(t, lines.String(), password)
		assert.NotContains(t, lines.String(), "gAAAAAB")
		_ = id
		_, err = secret.From(func(string) string { return "" }, "OS_PASSWORD")
		require.Error(t, err)
	})
}

func TestAWrongServerSettingIsAnError(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		self := w.node()
		providertest.Identity(t, serverSetting, self, w.node(), func(set string) providers.Provider {
			cfg := w.on(self).cfg
			cfg.Server = set
			p, err := New(cfg)
			require.NoError(t, err)
			return p
		}, func() func() {
			return w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		})
	})
}

func TestTheMetadataDocumentIsNotShown(t *testing.T) {
	for _, document := range []string{`{"admin_pass": "hunter2", "uuid": "17"}`, `{"admin_pass": "hunter2"}`, `{"admin_pass": "hunter2", `} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			server := w.node()
			link := &transport{RoundTripper: w.front.Transport(server)}
			link.do(func(r *http.Request, _ string) (*http.Response, error) {
				if r.URL.Hostname() != httpsim.MetadataHost {
					return nil, nil
				}
				return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(document)), Request: r}, nil
			})
			_, err := w.onBy(server, link).Node(t.Context())
			sentence(t, err, "no metadata service of OpenStack", serverSetting)
			assert.NotContains(t, err.Error(), "hunter2")
		})
	}
}
