package cluster_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
)

// Clouds with other buses than EC2. On each, a service and its disk move from node to node, also when the node loses power, and when
// it freezes: then it is powered off and started again by TAKEOVER=fence. Each has a cluster of its own, with two nodes.
func TestServiceMovesWithItsVolumeOnOtherClouds(t *testing.T) {
	long(t)
	for _, kind := range fronts.All {
		if kind.Bus == fronts.NVMe {
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			c := cluster.Start(t, cluster.Config{
				Nodes: 2, Kind: kind, Dir: "../../build/plugin", Log: t.Logf,
				Cloud:   cloud.Config{Latency: latency, Times: times},
				Plugins: []cluster.Plugin{{Settings: []string{"TAKEOVER=fence", "FENCE=reboot", "PEER_KEY=" + newPeerKey()}}},
			})
			t.Cleanup(func() {
				if t.Failed() {
					c.SaveLogs(logs)
				}
			})
			manager, worker := c.Nodes[0], c.Nodes[1]
			var w *cluster.Writer
			c.Place(worker, func() { w = c.StartWriter("diary", "blockvol") })
			w.OnlyOn(worker)

			begin := time.Now()
			c.Availability(worker, "drain")
			ack := w.Await("it moves", ledger.NotOn(worker.Name))
			w.OnlyOn(manager)
			t.Logf("drain: pause %.1f s", c.Ledger.Gap(w.Name, begin).Seconds())
			assert.Equal(t, manager.Name, ack.Node)
			c.Availability(worker, "active")

			gather(c, worker, w)
			begin = time.Now()
			worker.PowerOff()
			w.Await("it continues", ledger.On(manager.Name))
			t.Logf("power loss: pause %.1f s", c.Ledger.Gap(w.Name, begin).Seconds())
			worker.PowerOn()
			c.Settle()
			w.OnlyOn(manager)
			assert.Empty(t, c.PowerOffs(), "a node that was off already")

			gather(c, worker, w)
			manager.Met("blockvol")
			begin = time.Now()
			worker.Freeze()
			w.Await("it continues", ledger.On(manager.Name))
			t.Logf("frozen: pause %.1f s", c.Ledger.Gap(w.Name, begin).Seconds())
			worker.AwaitOn()
			t.Logf("the frozen node is back after %.1f s", time.Since(begin).Seconds())
			assert.Equal(t, []string{worker.Instance}, c.PowerOffs())
			c.Settle()
			w.OnlyOn(manager)
			w.Remove()
			c.NothingLeft()
			c.Eventually("the volume is deleted", func() error {
				if left := fronts.Disks(c.Cloud); len(left) > 0 {
					return fmt.Errorf("%+v", left)
				}
				return nil
			})
		})
	}
}
