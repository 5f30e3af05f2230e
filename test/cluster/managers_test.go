package cluster_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
)

// Three nodes, all of them managers, as in small Swarms. The leader is on the node that fails.
func TestServiceSurvivesPowerLossOfTheLeader(t *testing.T) {
	long(t)
	c := shared(t)
	c.Promote(c.Nodes[1:]...)
	w := c.StartWriter("throne", driverOf("stopped"))
	fall := func(what string, do func(t *testing.T, leader *cluster.Node)) {
		t.Helper()
		well := t.Run(what, func(t *testing.T) {
			c.Use(t)
			leader := c.Leader()
			gather(c, leader, w)
			begin := time.Now()
			do(t, leader)
			ack := w.Await("it continues on another node", ledger.NotOn(leader.Name))
			t.Logf("the leader was %s and is %s; the service went on at %s after %.1f s; the longest pause was %.1f s", leader.Name,
				c.Leader().Name, ack.Node, ack.At.Sub(begin).Seconds(), c.Ledger.Gap(w.Name, begin).Seconds())
			leader.Heal()
			leader.PowerOn()
			c.Settle()
			settled(c, w)
			c.NoViolations()
		})
		c.Use(t)
		if !well {
			t.FailNow()
		}
	}
	fall("It loses power", func(_ *testing.T, leader *cluster.Node) { leader.PowerOff() })
	fall("It is cut off from the others, until the operator follows the advice", func(t *testing.T, leader *cluster.Node) {
		old, before := w.Errors(), w.Await("it writes")
		leader.CutFromNodes()
		refusal(c, w, old, "still attached to node "+leader.Instance, "stop instance "+leader.Instance+" in EC2")
		ack := w.Await("it writes on")
		assert.Equal(t, before.Task, ack.Task, "the task is not disturbed")
		leader.PowerOff()
	})
	c.Demote(c.Nodes[1:]...)
	w.Remove()
	c.NothingLeft()
}
