package aws

import (
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

// counting counts the requests to EC2 and to the metadata service.
type counting struct {
	http.RoundTripper

	mu            sync.Mutex
	ec2, metadata int
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	if r.URL.Hostname() == "169.254.169.254" {
		c.metadata++
	} else {
		c.ec2++
	}
	c.mu.Unlock()
	return c.RoundTripper.RoundTrip(r)
}

// refused is a metadata service that does not exist.
type refused struct{ http.RoundTripper }

func (n refused) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Hostname() == "169.254.169.254" {
		return nil, syscall.ECONNREFUSED
	}
	return n.RoundTripper.RoundTrip(r)
}

// env is an environment.
func env(settings map[string]string) func(string) string {
	return func(name string) string { return settings[name] }
}

func write(t *testing.T, content string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

// silent asserts that an error shows no credentials and no signature.
func silent(t *testing.T, w *world, err error, node string, more ...string) {
	t.Helper()
	require.Error(t, err)
	keyID, secret, token := w.front.Credentials(node)
	for _, hidden := range append([]string{keyID, secret, token, "Signature=0", "Signature=1"}, more...) {
		if hidden != "" {
			assert.NotContains(t, err.Error(), hidden)
		}
	}
}

func TestCredentialErrorsSayWhatIsWrong(t *testing.T) {
	for _, wrong := range []struct {
		name string
		node func(w *world, node string) http.RoundTripper
		cfg  func(t *testing.T, w *world, cfg *Config)
		says []string
		is   error
	}{
		{
			name: "no role and no keys",
			node: func(w *world, node string) http.RoundTripper {
				return w.front.TransportWith(node, ec2.MetadataOptions{NoRole: true})
			},
			says: []string{"no AWS credentials", "role", "AWS_ACCESS_KEY_ID", "_FILE"},
		},
		{
			name: "the metadata service is off",
			node: func(w *world, node string) http.RoundTripper {
				return w.front.TransportWith(node, ec2.MetadataOptions{Off: true})
			},
			says: []string{"metadata", "enabled", "IMDSv2"}, is: providers.ErrUnavailable,
		},
		{
			name: "the metadata service is not there",
			node: func(w *world, node string) http.RoundTripper { return refused{w.front.Transport(node)} },
			says: []string{"metadata", "connection refused", "EC2 instance"}, is: providers.ErrUnavailable,
		},
		{
			name: "another region",
			cfg:  func(_ *testing.T, _ *world, cfg *Config) { cfg.Region = "us-wrong-2" },
			says: []string{"us-wrong-2", region, "AWS_REGION"}, is: providers.ErrInvalid,
		},
		{
			name: "a wrong secret",
			cfg: func(t *testing.T, w *world, cfg *Config) {
				t.Helper()
				keyID, _, _ := w.front.Credentials("")
				cfg.Credentials = files(t, keyID, "wrong+secret/of=some=length+0123456789")
			},
			says: []string{"SignatureDoesNotMatch", "keys are right"},
		},
		{
			name: "an unknown key",
			cfg: func(t *testing.T, _ *world, cfg *Config) {
				t.Helper()
				cfg.Credentials = files(t, "AKIAUNKNOWN", "some")
			},
			says: []string{"AuthFailure", "keys are right and active"},
		},
		{
			name: "a file that is missing",
			cfg: func(t *testing.T, _ *world, cfg *Config) {
				t.Helper()
				keys, err := keysFromFiles(env(map[string]string{"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY_FILE": "/none/such"}))
				require.NoError(t, err)
				cfg.Credentials = keys
			},
			says: []string{"AWS_SECRET_ACCESS_KEY_FILE", "/none/such", "no such file", "/data/state"},
		},
		{
			name: "an empty file",
			cfg: func(t *testing.T, _ *world, cfg *Config) {
				t.Helper()
				cfg.Credentials = files(t, "AKIA", "")
			},
			says: []string{"AWS_SECRET_ACCESS_KEY", "both needed"},
		},
	} {
		t.Run(wrong.name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				node := w.node("a")
				link := &counting{RoundTripper: w.front.Transport(node)}
				if wrong.node != nil {
					link.RoundTripper = wrong.node(w, node)
				}
				cfg := Config{Cluster: "main", HTTPClient: &http.Client{Transport: link}}
				if wrong.cfg != nil {
					wrong.cfg(t, w, &cfg)
				}
				p, err := New(cfg)
				require.NoError(t, err)
				begin := time.Now()
				_, err = p.Find(t.Context(), "db")
				providertest.Sentence(t, err, wrong.says...)
				silent(t, w, err, node, "wrong+secret")
				require.NotErrorIs(t, err, providers.ErrNotFound)
				if wrong.is != nil {
					require.ErrorIs(t, err, wrong.is)
				}
				assert.LessOrEqual(t, link.ec2, 1)
				assert.LessOrEqual(t, link.metadata, 6, "two attempts of three at most")
				assert.LessOrEqual(t, time.Since(begin), 10*time.Second)
			})
		})
	}
}

// files returns keys that are read from files.
func files(t *testing.T, keyID, secret string) sdk.CredentialsProvider {
	t.Helper()
	keys, err := keysFromFiles(env(map[string]string{"AWS_ACCESS_KEY_ID_FILE": write(t, keyID), "AWS_SECRET_ACCESS_KEY_FILE": write(t, secret+"\n")}))
	require.NoError(t, err)
	return keys
}

func TestACorrectedClockWorksAtOnce(t *testing.T) {
	off := time.Hour
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		_, err := p.Find(t.Context(), "db")
		require.Error(t, err)
		off = 0
		for range 2 {
			_, err = p.Find(t.Context(), "db")
		}
		require.ErrorIs(t, err, providers.ErrNotFound)
	}, func(cfg *ec2.Config) { cfg.Now = func() time.Time { return time.Now().Add(off) } })
}

func TestContradictorySettingsAreRefused(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		_, err := FromEnv(env(map[string]string{name: "hush", name + "_FILE": "/data/state/key"}), "", "main", nil, nil)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, name, name+"_FILE", "leave one")
		assert.NotContains(t, err.Error(), "hush")
	}
	for _, half := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		_, err := FromEnv(env(map[string]string{half: "hush"}), "", "main", nil, nil)
		require.ErrorIs(t, err, providers.ErrInvalid, "the SDK would ignore it")
		providertest.Sentence(t, err, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "both")
		assert.NotContains(t, err.Error(), "hush")
	}
	_, err := FromEnv(env(nil), "", "", nil, nil)
	providertest.Sentence(t, err, "CLUSTER")
	_, err = FromEnv(env(map[string]string{"AWS_REGION": region}), "", "main", nil, nil)
	require.NoError(t, err)
}

func TestMetadataIsReadWithTokensOnly(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) { // version 1 is off
		link := &counting{RoundTripper: w.front.Transport(w.node("a"))}
		p := w.onWith(link)
		w.create(p, "db")
		first := link.metadata
		assert.LessOrEqual(t, first, 6)
		time.Sleep(24 * time.Hour) // the role's keys have expired several times
		_, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.LessOrEqual(t, link.metadata, 2*first)
	})
}

func TestKeysInFilesCanBeReplaced(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node := w.node("a")
		keyID, secret, _ := w.front.Credentials("")
		idFile, secretFile := write(t, keyID), write(t, "old")
		keys, err := keysFromFiles(env(map[string]string{"AWS_ACCESS_KEY_ID_FILE": idFile, "AWS_SECRET_ACCESS_KEY_FILE": secretFile}))
		require.NoError(t, err)
		link := w.front.TransportWith(node, ec2.MetadataOptions{NoRole: true})
		p, err := New(Config{Cluster: "main", HTTPClient: &http.Client{Transport: link}, Credentials: keys})
		require.NoError(t, err)
		_, err = p.Find(t.Context(), "db")
		providertest.Sentence(t, err, "SignatureDoesNotMatch")
		require.NoError(t, os.WriteFile(secretFile, []byte(secret+"\r\n"), 0o600))
		time.Sleep(keysLife + time.Second)
		_, err = p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
	})
}

func TestInvalidOptionsAreRefusedBeforeAnythingIsCreated(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		for says, spec := range map[string]providers.Spec{
			"gp3, gp2, io2": {Size: gib, Type: "gp9"}, "from 3000 to 80000": {Size: gib, IOPS: 1}, "from 125 to 2000": {Size: gib, Throughput: 1 << 40},
			"nowhere": {Size: gib, Zone: "nowhere"}, "snap-0123456789abcdef0": {Size: gib, Snapshot: "snap-0123456789abcdef0"},
		} {
			spec.Name = "db"
			_, err := p.Create(t.Context(), spec)
			require.ErrorIs(t, err, providers.ErrInvalid)
			providertest.Sentence(t, err, says)
		}
		assert.Zero(t, w.volumes())
	})
}
