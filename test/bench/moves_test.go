package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
)

// TestMovesUnderOldReads moves a volume between two nodes, in fake time, in a cloud whose answers are up to five seconds old.
func TestMovesUnderOldReads(t *testing.T) {
	const (
		seeds, moves            = 10, 6
		latency, detach, attach = 200 * time.Millisecond, time.Second, 2 * time.Second
		limit                   = 30 * time.Second
		// A call takes effect after half its time, and each move has one to detach, one to find the volume, and one to attach it.
		own = moves * (latency/2 + detach + latency + latency/2 + attach)
	)
	state := ramDisk(t)
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			var sum, longest time.Duration
			calls := map[string]int{}
			for seed := range uint64(seeds) {
				synctest.Test(t, func(t *testing.T) {
					var front fronts.Front
					cfg := kind.Cloud
					kernels := newKernels(func(volume string) string { return kind.Serial(front, volume) })
					cfg.Seed, cfg.Backend = seed, kernels
					c := cloud.New(cfg)
					defer c.Close()
					front = kind.New(c)
					var nodes []*driver.Driver
					for i := range 2 {
						instance := c.AddInstance(kind.Instance).ID
						p, err := kind.Process(front, instance, "bench")
						require.NoError(t, err)
						if i == 0 {
							makeFormatted(t, p, 1)
						}
						d, err := driver.New(driver.Config{
							Provider: p, Host: &kernel{kernels: kernels, instance: instance}, Log: log,
							StateDir: filepath.Join(state, kind.Provider, fmt.Sprint(seed), strconv.Itoa(i)), PublishedDir: "/published",
						})
						require.NoError(t, err)
						nodes = append(nodes, d)
					}
					c.SetPace(latency, 5*time.Second, cloud.Times{Attach: attach, Detach: detach})
					time.Sleep(time.Minute) // the start is over
					volume := volumeName(0)
					id := mountAsSwarm(t, nodes[0], volume)
					time.Sleep(time.Minute)
					c.ResetCalls()
					begin := time.Now()
					for move := range moves {
						ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
						require.NoError(t, nodes[move%2].Unmount(ctx, volume, id))
						cancel()
						id = mountAsSwarm(t, nodes[(move+1)%2], volume)
					}
					took := time.Since(begin)
					sum += took
					longest = max(longest, took)
					for call, n := range c.Calls() {
						calls[call] += n
					}
					for _, d := range nodes {
						require.NoError(t, d.Close(context.Background()))
					}
				})
			}
			mean := sum / seeds
			t.Logf("six moves take %v, at most %v; calls %v", mean, longest, calls)
			report(kind.Name+": 6 moves between two nodes, reads 5 s old", fmt.Sprintf("%.0f s", limit.Seconds()), "%.1f s, of it the cloud %.1f s", mean.Seconds(), own.Seconds())
			if mean > limit {
				t.Errorf("six moves take %v", mean)
			}
		})
	}
}
