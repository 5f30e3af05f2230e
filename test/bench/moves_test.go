package bench

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
)

// What the cloud of the moves takes.
const (
	callTime   = 200 * time.Millisecond
	detachTime = time.Second
	attachTime = 2 * time.Second
	oldest     = 5 * time.Second // an answer
)

// neighbours are nodes that can ask each other.
type neighbours map[string]*driver.Driver

// Ask implements controller.Peers. An answer takes a millisecond, as between machines of one zone.
func (n neighbours) Ask(ctx context.Context, _ []netip.Addr, want volume.Want) (volume.Holding, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	time.Sleep(time.Millisecond)
	return n[want.To].Yield(ctx, want)
}

// pair runs a test, in simulated time, with two nodes of a cloud whose answers are old. The first of them has mounted a volume. With
// peers, which it fills, the nodes can ask each other.
func pair(t *testing.T, kind fronts.Kind, seed uint64, peers neighbours, test func(t *testing.T, c *cloud.Cloud, nodes []*driver.Driver, id string)) {
	t.Helper()
	state := ramDisk(t)
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
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
			var asking controller.Peers
			if peers != nil {
				asking = peers
			}
			d, err := driver.New(driver.Config{
				Peers: asking, Provider: p, Host: &kernel{kernels: kernels, instance: instance}, Log: log,
				StateDir: filepath.Join(state, strconv.Itoa(i)), PublishedDir: "/published",
			})
			require.NoError(t, err)
			nodes = append(nodes, d)
			if peers != nil {
				peers[instance] = d
			}
		}
		c.SetPace(callTime, oldest, cloud.Times{Attach: attachTime, Detach: detachTime})
		time.Sleep(time.Minute) // the start is over
		id := mountAsSwarm(t, nodes[0], volumeName(0))
		time.Sleep(time.Minute)
		c.ResetCalls()
		test(t, c, nodes, id)
		for _, d := range nodes {
			require.NoError(t, d.Close(context.Background()))
		}
	})
}

// TestMovesWhileAnswersAreOld moves a volume to and fro between two nodes, each time right after it was mounted.
func TestMovesWhileAnswersAreOld(t *testing.T) {
	const (
		runs, moves = 20, 6
		limit       = 30 * time.Second
		// A call takes effect after half its time. A move has one to detach, one to find the volume, and one to attach it.
		own = moves * (callTime/2 + detachTime + callTime + callTime/2 + attachTime)
	)
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			var sum, longest time.Duration
			for seed := range uint64(runs) {
				pair(t, kind, seed, nil, func(t *testing.T, _ *cloud.Cloud, nodes []*driver.Driver, id string) {
					begin := time.Now()
					for move := range moves {
						ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
						require.NoError(t, nodes[move%2].Unmount(ctx, volumeName(0), id))
						cancel()
						id = mountAsSwarm(t, nodes[(move+1)%2], volumeName(0))
					}
					took := time.Since(begin)
					sum, longest = sum+took, max(longest, took)
				})
			}
			mean := sum / runs
			t.Logf("%d moves take %v, at most %v", moves, mean, longest)
			report(fmt.Sprintf("%s: %d moves between two nodes, answers up to %s old", kind.Name, moves, oldest), fmt.Sprintf("%.0f s", limit.Seconds()),
				"%.1f s, of it %.1f s the cloud's own", mean.Seconds(), own.Seconds())
			if mean > limit {
				t.Errorf("%d moves take %v", moves, mean)
			}
		})
	}
}

// TestMovesFromANodeToItself mounts a volume right after it was unmounted, as when a container is restarted.
func TestMovesFromANodeToItself(t *testing.T) {
	const (
		runs  = 20
		calls = 3
		limit = 200 * time.Millisecond
		own   = apiLatency + apiLatency/2 + attachTime // the volume is found, and attached
	)
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			var sum, most time.Duration
			asked := 0
			for seed := range uint64(runs) {
				pair(t, kind, seed, nil, func(t *testing.T, c *cloud.Cloud, nodes []*driver.Driver, id string) {
					c.SetPace(apiLatency, 0, cloud.Times{Attach: attachTime, Detach: detachTime})
					time.Sleep(time.Minute)
					require.NoError(t, nodes[0].Unmount(context.Background(), volumeName(0), id))
					c.ResetCalls()
					begin := time.Now()
					mountAsSwarm(t, nodes[0], volumeName(0))
					took, n := time.Since(begin)-own, 0
					for _, times := range c.Calls() {
						n += times
					}
					sum, most, asked = sum+took, max(most, took), max(asked, n)
				})
			}
			t.Logf("beyond the cloud's own time %v, at most %v; at most %d calls", sum/runs, most, asked)
			assert.LessOrEqual(t, sum/runs, limit)
			assert.LessOrEqual(t, asked, calls)
		})
	}
}

// TestMovesToANodeThatWaits has one node wait for a volume that a container on another uses, until that ends.
func TestMovesToANodeThatWaits(t *testing.T) {
	const (
		runs  = 20
		calls = 2
		limit = 300 * time.Millisecond
		own   = callTime/2 + detachTime + callTime/2 + attachTime
	)
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			var most time.Duration
			asked := 0
			for seed := range uint64(runs) {
				pair(t, kind, seed, neighbours{}, func(t *testing.T, c *cloud.Cloud, nodes []*driver.Driver, id string) {
					mounted := make(chan time.Time)
					go func() {
						mountAsSwarm(t, nodes[1], volumeName(0))
						mounted <- time.Now()
					}()
					time.Sleep(20 * time.Second)
					c.ResetCalls()
					begin := time.Now()
					require.NoError(t, nodes[0].Unmount(context.Background(), volumeName(0), id))
					took := (<-mounted).Sub(begin)
					n := -2 // the detach and the attach
					for _, times := range c.Calls() {
						n += times
					}
					most, asked = max(most, took-own), max(asked, n)
				})
			}
			t.Logf("beyond the cloud's own time %v; %d calls", most, asked)
			report(kind.Name+": a volume is handed over to a node that waits, beyond the cloud's own detach and attach: ms, calls", fmt.Sprintf("%d, %d", limit.Milliseconds(), calls),
				"%d, %d", most.Milliseconds(), asked)
			assert.LessOrEqual(t, most, limit)
			assert.LessOrEqual(t, asked, calls)
		})
	}
}

// A node that does not let go of a volume costs the next one few refused requests, whichever the cloud.
func TestWaitingForALiveNodeCostsFewRefusedAttaches(t *testing.T) {
	for _, kind := range fronts.All {
		t.Run(kind.Name, func(t *testing.T) {
			for seed := range uint64(5) {
				pair(t, kind, seed, nil, func(t *testing.T, c *cloud.Cloud, nodes []*driver.Driver, id string) {
					attaches := func() (n int) {
						for call, times := range c.Calls() {
							if call == "AttachVolume" || strings.HasPrefix(call, "POST ") {
								n += times
							}
						}
						c.ResetCalls()
						return n
					}
					for most := 3; ; most = 0 {
						for range 10 {
							ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
							_, err := nodes[1].Mount(ctx, volumeName(0), "1")
							cancel()
							require.ErrorContains(t, err, "still attached to node")
							time.Sleep(5 * time.Second)
						}
						assert.LessOrEqual(t, attaches(), most)
						if most == 0 {
							break
						}
					}
					require.NoError(t, nodes[0].Unmount(context.Background(), volumeName(0), id))
				})
			}
		})
	}
}
