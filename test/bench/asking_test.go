package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
)

// fill makes volumes of a cluster as blockvol has them, up to that many: one by blockvol, the others after its pattern.
func fill(t testing.TB, c *cloud.Cloud, p providers.Provider, cluster string, volumes int) {
	t.Helper()
	pattern := volumeName(0)
	_, err := p.Create(t.Context(), providers.Spec{
		Name: pattern, Size: 10 << 30, Record: providers.Record{"fstype": "ext4", "layout": mount.LayoutData, "formatted": "ext4"},
	})
	require.NoError(t, err)
	var made cloud.Volume
	for _, v := range fronts.Disks(c) {
		made = v
	}
	_, err = c.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
		for i := 1; i < volumes; i++ {
			var pairs []string
			for _, most := range []int{32, 36, 63} { // as the clouds have room for
				pairs = append(pairs, labels.Name(cluster, pattern, most), labels.Name(cluster, volumeName(i), most))
			}
			old, digest := labels.Digest(cluster, pattern), labels.Digest(cluster, volumeName(i))
			pairs = append(pairs, old, digest, old[:40], digest[:40])
			renamed := strings.NewReplacer(append(pairs, pattern, volumeName(i))...)
			tags := map[string]string{}
			for key, value := range made.Tags {
				tags[renamed.Replace(key)] = renamed.Replace(value)
			}
			if _, err := r.CreateVolume(cloud.VolumeSpec{Shape: made.Shape(), Zone: made.Zone, Tags: tags}); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, err)
}

// restClouds are those whose lists are read by package rest.
func restClouds() []fronts.Kind {
	return slices.DeleteFunc(slices.Clone(fronts.All), func(k fronts.Kind) bool {
		return k.Provider == "aws" || k.Provider == "openstack"
	})
}

// TestWhatACreateCostsAFleet counts, in fake time, what a create costs with few and with many volumes.
func TestWhatACreateCostsAFleet(t *testing.T) {
	state := ramDisk(t)
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	for _, kind := range restClouds() {
		t.Run(kind.Name, func(t *testing.T) {
			costs := make(map[int]int)
			for _, volumes := range []int{20, 1000} {
				synctest.Test(t, func(t *testing.T) {
					var front fronts.Front
					kernels := newKernels(func(volume string) string { return kind.Serial(front, volume) })
					cfg := kind.Cloud
					cfg.Latency, cfg.Backend = apiLatency, kernels
					c := cloud.New(cfg)
					defer c.Close()
					front = kind.New(c)
					instance := c.AddInstance(kind.Instance).ID
					p, err := kind.Process(front, instance, "bench")
					require.NoError(t, err)
					fill(t, c, p, "bench", volumes)
					d, err := driver.New(driver.Config{
						Provider: p, Host: &kernel{kernels: kernels, instance: instance}, Log: log,
						StateDir: filepath.Join(state, kind.Provider, strconv.Itoa(volumes)), PublishedDir: "/published",
					})
					require.NoError(t, err)
					time.Sleep(time.Hour) // the start is over
					c.ResetCalls()
					require.NoError(t, d.Create(context.Background(), "another", nil))
					for _, n := range c.Calls() {
						costs[volumes] += n
					}
					t.Logf("%d volumes: %v", volumes, c.Calls())
					require.NoError(t, d.Close(context.Background()))
				})
			}
			report(kind.Name+": calls per create, 20 and 1,000 volumes", "5, 5", "%d, %d", costs[20], costs[1000])
			assert.LessOrEqual(t, costs[20], 5)
			assert.Equal(t, costs[20], costs[1000], "it grows with the number of volumes")
		})
	}
}

// pages answers a request for a page of a list as it did before, so that what is measured is not how long the simulation takes to
// cut a page out of thousands.
type pages struct {
	next http.Handler

	mu     sync.Mutex
	known  map[string]*httptest.ResponseRecorder // nil before all volumes are there
	served int
}

func (p *pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !r.URL.Query().Has("page") {
		p.next.ServeHTTP(w, r)
		return
	}
	key := r.URL.String() + r.Header.Get("X-Filter")
	p.mu.Lock()
	known := p.known
	answer := known[key]
	p.served++
	p.mu.Unlock()
	if known == nil {
		p.next.ServeHTTP(w, r)
		return
	}
	if answer == nil {
		answer = httptest.NewRecorder()
		p.next.ServeHTTP(answer, r)
		p.mu.Lock()
		p.known[key] = answer
		p.mu.Unlock()
	} else {
		time.Sleep(apiLatency)
	}
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // a client that is gone does not matter
}

// BenchmarkTenThousandVolumesOfACloud measures a list of them, and the memory of the process after several.
func BenchmarkTenThousandVolumesOfACloud(b *testing.B) {
	for _, kind := range restClouds() {
		b.Run(kind.Name, func(b *testing.B) {
			for range b.N {
				var shown *pages
				a := serveBehind(b, kind, time.Second, func(front http.Handler) http.Handler {
					shown = &pages{next: front}
					return shown
				})
				p, err := kind.Process(a.front, a.instance, "default")
				require.NoError(b, err)
				fill(b, a.cloud, p, "default", 10_000)
				shown.mu.Lock()
				shown.known = make(map[string]*httptest.ResponseRecorder)
				shown.mu.Unlock()
				require.Eventually(b, func() bool { return a.listed(b) == 10_000 }, 5*time.Minute, time.Second)
				var took []time.Duration
				requests := 0
				for range 10 {
					time.Sleep(2 * time.Second) // a list serves for a while
					before := shown.served
					lap := a.call(b, "List", map[string]any{})
					if requests = shown.served - before; requests > 0 {
						took = append(took, lap)
					}
				}
				require.NotEmpty(b, took)
				resident := a.resident(b)
				report(fmt.Sprintf("%s: list of 10,000 volumes, at %s a request, seconds", kind.Name, apiLatency), "6", "%.1f", median(took).Seconds())
				report(kind.Name+": requests for it", "", "%d", requests)
				report(kind.Name+": resident memory after ten", "60 MB", "%.0f MB", float64(resident)/1e6)
				assert.Less(b, median(took), 6*time.Second)
				assert.Less(b, resident, int64(60e6))
				a.stop()
			}
		})
	}
}

// listed is how many volumes the plugin lists.
func (d *daemon) listed(b *testing.B) int {
	resp, err := d.client.Post("http://blockvol/VolumeDriver.List", "application/json", strings.NewReader("{}"))
	require.NoError(b, err)
	defer resp.Body.Close() //nolint:errcheck // it has been read
	var answer struct{ Volumes []struct{ Name string } }
	require.NoError(b, json.NewDecoder(resp.Body).Decode(&answer)) // none, while the first list takes too long
	return len(answer.Volumes)
}
