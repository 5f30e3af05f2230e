package fronts_test

import (
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/openstack"
)

func TestMain(m *testing.M) {
	cloudtest.Unsetenv("AWS_")
	os.Exit(m.Run())
}

// bare is the kernel of a machine without disks.
type bare struct{ node.Host }

func (bare) Find(context.Context, string) (mount.Device, error) {
	return mount.Device{}, mount.ErrNoDevice
}
func (bare) Shared(context.Context) (bool, error)                              { return true, nil }
func (bare) Mounted() ([]string, error)                                        { return nil, nil }
func (bare) Unstage(context.Context, string) error                             { return nil }
func (bare) Examine(context.Context, mount.Device, string) (f []mount.Finding) { return nil }

// site is a cluster of two nodes in a simulated cloud, of which one has a volume.
type site struct {
	*cloud.Cloud
	front fronts.Front
	here  string // the node that is examined
}

// examined plants a fault and returns what is found, and which calls that took. Nothing in the cloud may change.
func examined(t *testing.T, kind fronts.Kind, plant func(s site)) (found []driver.Finding, calls []string) {
	t.Helper()
	var mu sync.Mutex // of calls
	log := logrus.New()
	log.SetOutput(io.Discard)
	cfg := kind.Cloud
	cfg.Trace = func(call cloud.Call, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, call.Action)
	}
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		s := site{c, kind.New(c), c.AddInstance(kind.Instance).ID}
		there := c.AddInstance(kind.Instance).ID
		p, err := kind.Process(s.front, s.here, "main")
		require.NoError(t, err)
		other, err := kind.Process(s.front, there, "main")
		require.NoError(t, err)
		v, err := other.Create(t.Context(), providers.Spec{Name: "db", Size: 10 * providers.GiB})
		require.NoError(t, err)
		require.NoError(t, providertest.Attach(t.Context(), other, v.ID))
		cloudtest.WaitFor(t, c, v.ID, cloudtest.Attached)

		d, err := driver.New(driver.Config{Provider: p, Host: bare{}, StateDir: t.TempDir(), PublishedDir: t.TempDir(), Boot: "boot", Log: log})
		require.NoError(t, err)
		defer func() { require.NoError(t, d.Close(context.Background())) }()
		time.Sleep(time.Second)
		synctest.Wait() // it has looked for strays
		before := []any{c.Volumes(), c.Snapshots()}
		plant(s)
		mu.Lock()
		calls = nil
		mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		found = d.Diagnose(ctx)
		after := []any{c.Volumes(), c.Snapshots()}
		assert.Equal(t, before, after, "the cloud was changed")
	})
	return found, calls
}

func wrong(found []driver.Finding) (codes []string) {
	for _, f := range found {
		if f.Severity != driver.OK {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

func TestDoctorFindsNothingInAHealthyCloudAndOnlyReads(t *testing.T) {
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			found, calls := examined(t, kind, func(site) {})
			assert.Empty(t, wrong(found), "%v", found)
			var checks []string
			for _, f := range found {
				checks = append(checks, f.Check)
			}
			want := []string{"identity", "credentials", "permissions"}
			if kind.Provider == "aws" || kind.Provider == "digitalocean" || kind.Provider == "openstack" {
				want = append(want, "snapshots")
			}
			if kind.Provider == "digitalocean" || kind.Provider == "openstack" {
				want = append(want, "quota")
			}
			assert.Equal(t, append(want, "clock", "journal", "mounts", "volumes"), checks)
			require.NotEmpty(t, calls)
			for _, call := range calls {
				// EC2's dry runs are counted like others: package aws tests that they are.
				reads := kind.Provider == "aws" || strings.HasPrefix(call, "GET ") || strings.HasSuffix(call, "/auth/tokens")
				assert.True(t, reads, call)
			}
		})
	}
}

// revoke makes the credentials of the node useless.
func revoke(t *testing.T, s site) {
	t.Helper()
	switch front := s.front.(type) {
	case *openstack.Front:
		front.Revoke(s.here)
	case interface {
		Revoke(token string)
		Token(instance string) string
	}:
		front.Revoke(front.Token(s.here))
	default:
		s.Inject(cloud.Rule{Caller: s.here, Fault: cloud.Fail, Code: "AuthFailure"})
	}
}

func TestDoctorFindsWhatIsWrongWithEachCloud(t *testing.T) {
	for _, c := range []struct {
		fault string
		plant func(t *testing.T, s site)
		want  string
	}{
		{"a clock that is wrong", func(_ *testing.T, s site) { s.SetClock(10 * time.Minute) }, "clock-wrong"},
		{"credentials that were revoked", revoke, "credentials-refused"},
		{"an API that is away", func(_ *testing.T, s site) { s.Inject(cloud.Rule{Fault: cloud.LoseAnswer}) }, "cloud-unreachable"},
		{"a proxy that answers for the API", func(_ *testing.T, s site) { s.Inject(cloud.Rule{Fault: cloud.Garbage}) }, "cloud-unreachable"},
	} {
		for _, kind := range fronts.All {
			t.Run(c.fault+" on "+kind.Name, func(t *testing.T) {
				found, _ := examined(t, kind, func(s site) { c.plant(t, s) })
				assert.Equal(t, []string{c.want}, wrong(found), "%v", found)
			})
		}
	}
}

// A throttled request waits for as long as the check takes.
func TestDoctorFindsThatACloudThrottles(t *testing.T) {
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			found, _ := examined(t, kind, func(s site) { s.Inject(cloud.Rule{Fault: cloud.Throttle}) })
			codes := wrong(found)
			require.Len(t, codes, 1, "%v", found)
			assert.Contains(t, []string{"cloud-busy", "cloud-slow"}, codes[0])
		})
	}
}

func TestDoctorFindsAMetadataServiceThatIsAway(t *testing.T) {
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			cloudtest.Run(t, kind.Cloud, func(t *testing.T, c *cloud.Cloud) {
				here := c.AddInstance(kind.Instance).ID
				front := kind.New(c)
				c.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "503"})
				p, err := kind.Process(front, here, "main")
				require.NoError(t, err)
				found := p.(providers.Examiner).Examine(t.Context())
				assert.Equal(t, []string{"identity-unknown"}, wrong(found), "%v", found)
				assert.Contains(t, found[0].Message, "metadata service")
			})
		})
	}
}
