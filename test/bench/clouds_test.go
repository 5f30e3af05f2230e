package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cloud/loop"
	"github.com/blockvol/blockvol/test/namespace"
)

// account is an account of a simulated cloud with blockvol on one instance, this machine. The disks are loop devices.
type account struct {
	*daemon
	cloud    *cloud.Cloud
	front    fronts.Front
	instance string
}

// apiLatency is the duration of each API call.
const apiLatency = 100 * time.Millisecond

func serveOn(b *testing.B, kind fronts.Kind, attach time.Duration) *account {
	b.Helper()
	return serveBehind(b, kind, attach, func(front http.Handler) http.Handler { return front })
}

// serveBehind is serveOn with something before the cloud's API.
func serveBehind(b *testing.B, kind fronts.Kind, attach time.Duration, before func(http.Handler) http.Handler) *account {
	b.Helper()
	disks, err := loop.New(namespace.Dir(b))
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, disks.Close()) })
	cfg := kind.Cloud
	cfg.Latency, cfg.Times, cfg.Backend = apiLatency, cloud.Times{Attach: attach, Detach: time.Second}, disks
	c := cloud.New(cfg)
	b.Cleanup(c.Close)
	front := kind.New(c)
	disks.ShowAs(func(volume string) loop.Identity { return kind.Identity(front, volume) })
	instance := c.AddInstance(kind.Instance).ID
	api, metadata := httptest.NewServer(before(front)), httptest.NewServer(front.Metadata(instance))
	b.Cleanup(api.Close)
	b.Cleanup(metadata.Close)
	tree := filepath.Join(b.TempDir(), "sysfs")
	require.NoError(b, disks.Sysfs(instance, tree))
	settings := append(kind.Settings(front, instance, api.URL, metadata.URL), "PROVIDER="+kind.Provider, "DEFAULT_SIZE=10GiB", "CALL_TIMEOUT=55s")
	return &account{cloud: c, front: front, instance: instance, daemon: serveWith(b, []string{"--sysfs=" + tree}, settings...)}
}

func nth(i int) string { return "v" + strconv.Itoa(i) }

// make creates and formats volumes.
func (a *account) make(b *testing.B, volumes int) {
	var all sync.WaitGroup
	for i := range volumes {
		all.Go(func() { a.call(b, "Create", map[string]any{"Name": nth(i)}) })
	}
	all.Wait()
	a.atOnce(b, "Mount", volumes)
	a.atOnce(b, "Unmount", volumes)
}

// atOnce mounts or unmounts the first volumes, all at the same time.
func (a *account) atOnce(b *testing.B, call string, volumes int) {
	var all sync.WaitGroup
	for i := range volumes {
		all.Go(func() { a.call(b, call, map[string]any{"Name": nth(i), "ID": "bench"}) })
	}
	all.Wait()
}

// counted returns the number of API calls during do.
func (a *account) counted(do func()) (calls int) {
	a.cloud.ResetCalls()
	do()
	for _, n := range a.cloud.Calls() {
		calls += n
	}
	return calls
}

// BenchmarkCalls counts the API calls of mounts and unmounts of formatted volumes.
func BenchmarkCalls(b *testing.B) {
	for _, kind := range fronts.All {
		b.Run(kind.Name, func(b *testing.B) {
			for range b.N {
				a := serveOn(b, kind, 2*time.Second)
				many := []int{1, 7}
				if kind.Provider == "aws" {
					many = []int{1, 10, 100}
				}
				a.make(b, many[len(many)-1])
				for _, n := range many {
					mount := a.counted(func() { a.atOnce(b, "Mount", n) })
					unmount := a.counted(func() { a.atOnce(b, "Unmount", n) })
					report(fmt.Sprintf("%s: calls per mount, %d at once", kind.Name, n), "3", "%.2f", float64(mount)/float64(n))
					report(fmt.Sprintf("%s: calls per unmount, %d at once", kind.Name, n), "2", "%.2f", float64(unmount)/float64(n))
				}
				a.stop()
			}
		})
	}
}

// BenchmarkOver measures what blockvol and the file system add to the cloud's own time: a call that describes the volume, and
// an attach, which begins half of the call's duration after it was sent.
func BenchmarkOver(b *testing.B) {
	for _, kind := range fronts.All {
		b.Run(kind.Name, func(b *testing.B) {
			for range b.N {
				for _, attach := range []time.Duration{time.Second, 5 * time.Second, 26 * time.Second} {
					a := serveOn(b, kind, attach)
					a.make(b, 1)
					var took []time.Duration
					for range 3 {
						took = append(took, a.call(b, "Mount", map[string]any{"Name": nth(0), "ID": "bench"}))
						a.atOnce(b, "Unmount", 1)
					}
					a.stop()
					own := median(took) - attach - apiLatency - apiLatency/2
					limit := max(200*time.Millisecond, attach/50)
					report(fmt.Sprintf("%s: mount, over the cloud's own time, attach of %s", kind.Name, attach), fmt.Sprintf("%d ms", limit.Milliseconds()), "%d ms", own.Milliseconds())
				}
			}
		})
	}
}

// TestFleetHour counts, in fake time, the API calls of 100 nodes in an hour. Each node mounts ten volumes (or the cloud's
// maximum) at a random time and unmounts them later, as in the hour before.
func TestFleetHour(t *testing.T) {
	const hour = time.Hour
	nodes := 100
	if testing.Short() {
		nodes = 5
	}
	state := ramDisk(t)
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var front fronts.Front
				cfg := kind.Cloud
				kernels := newKernels(func(volume string) string { return kind.Serial(front, volume) })
				cfg.Latency, cfg.Times, cfg.Backend = apiLatency, cloud.Times{Attach: 3 * time.Second, Detach: 3 * time.Second}, kernels
				c := cloud.New(cfg)
				defer c.Close()
				front = kind.New(c)
				var fleet []*driver.Driver
				for i := range nodes {
					instance := c.AddInstance(kind.Instance).ID
					p, err := kind.Process(front, instance, "bench")
					require.NoError(t, err)
					if i == 0 {
						makeFormatted(t, p, nodes*volumesPerNode)
					}
					d, err := driver.New(driver.Config{
						Provider: p, Host: &kernel{kernels: kernels, instance: instance}, Log: log,
						StateDir: filepath.Join(state, kind.Provider, strconv.Itoa(i)), PublishedDir: "/published",
					})
					require.NoError(t, err)
					fleet = append(fleet, d)
				}
				time.Sleep(hour) // the start is over
				random := rand.New(rand.NewPCG(1, 1))
				var all sync.WaitGroup
				for range 2 { // the first hour also has calls that happen once
					c.ResetCalls()
					for n, d := range fleet {
						begin, end := time.Duration(random.Int64N(int64(hour/2))), hour/2+time.Duration(random.Int64N(int64(hour/2)))
						for v := range volumesPerNode {
							all.Go(func() {
								time.Sleep(begin)
								volume := volumeName(n*volumesPerNode + v)
								if _, err := d.Get(context.Background(), volume); err != nil { // like dockerd
									t.Error(err)
								}
								id := mountAsSwarm(t, d, volume)
								time.Sleep(end - begin)
								if err := d.Unmount(context.Background(), volume, id); err != nil {
									t.Error(err)
								}
							})
						}
					}
					all.Wait()
				}
				calls := 0
				for _, n := range c.Calls() {
					calls += n
				}
				t.Logf("%v", c.Calls())
				limit := kind.Hourly
				share := "of no limit"
				if limit > 0 {
					share = fmt.Sprintf("%d %% of %d", calls*100/limit, limit)
				}
				assert.Less(t, calls, nodes*volumesPerNode*5, "a mount and an unmount")
				report(kind.Name+": calls in an hour of 100 nodes that mount and unmount 10 volumes each", "50 %", "%d, %s", calls, share)
				for _, d := range fleet {
					require.NoError(t, d.Close(context.Background()))
				}
			})
		})
	}
}

const volumesPerNode = 10
