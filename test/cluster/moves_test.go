package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
)

// One service goes through everything that an operator does to it and its nodes. Each new task reads the whole ledger before it
// writes, and must find everything that was acknowledged.
func TestServiceMovesWithItsVolume(t *testing.T) {
	long(t)
	c := shared(t)
	w := c.StartWriter("diary", driverOf("stopped"))
	at := w.Await("it writes")
	step := func(what string, do func(t *testing.T, from *cluster.Node) ledger.Ack) {
		t.Helper()
		well := t.Run(what, func(t *testing.T) {
			c.Use(t)
			begin, from := time.Now(), at.Node
			at = do(t, c.Node(from))
			gap := c.Ledger.Gap(w.Name, begin)
			w.OnlyOn(c.Node(at.Node))
			c.NoViolations()
			t.Logf("%s: from %s to %s in %.1f s, gap between acks %.1f s", what, from, at.Node, at.At.Sub(begin).Seconds(), gap.Seconds())
		})
		c.Use(t)
		if !well {
			t.FailNow()
		}
	}
	drain := func(_ *testing.T, from *cluster.Node) ledger.Ack {
		c.Availability(from, "drain")
		defer c.Availability(from, "active")
		return w.Await("it moves", ledger.NotOn(from.Name))
	}
	newTask := func() ledger.Ack { return w.Await("another task writes", ledger.NotBy(at.Task)) }
	w.OnlyOn(c.Node(at.Node))

	step("drain", drain)
	step("update", func(*testing.T, *cluster.Node) ledger.Ack {
		w.Update("--env-add", "CHANGED=1")
		return newTask()
	})
	step("update --force", func(*testing.T, *cluster.Node) ledger.Ack {
		w.Update("--force")
		return newTask()
	})
	step("scale to 0 and 1", func(*testing.T, *cluster.Node) ledger.Ack {
		w.Update("--replicas", "0")
		c.Eventually("the volume is detached", func() error { return available(w.Volume()) })
		w.Update("--replicas", "1")
		return newTask()
	})
	step("update start-first", func(t *testing.T, from *cluster.Node) ledger.Ack { return startFirst(t, c, w, from, at) })
	if at.Node == c.Manager().Name { // only the manager moves tasks
		step("drain", drain)
	}
	step("reboot", func(_ *testing.T, from *cluster.Node) ledger.Ack {
		from.Reboot()
		return newTask()
	})
	c.Settle()
	step("restart of all engines", func(*testing.T, *cluster.Node) ledger.Ack {
		for _, n := range c.Nodes {
			n.StopEngine()
			n.StartEngine()
			c.Settle()
		}
		return w.Await("it writes")
	})
	reference := c.PushPlugin()
	_, version, _ := strings.Cut(reference, "blockvol:")
	step("upgrade of the plugin", func(t *testing.T, from *cluster.Node) ledger.Ack {
		for _, n := range c.Nodes {
			if n != from { // a drained node has nothing left
				c.Availability(n, "drain")
			}
			assert.Equal(t, version, n.UpgradePlugin(w.Driver, reference), "the version that runs on %s", n.Name)
			c.Availability(n, "active")
		}
		after := w.Await("it writes on")
		assert.Equal(t, at.Task, after.Task, "a container keeps writing while the plugin is upgraded\n%s", w.Tasks())
		return after
	})
	c.Settle()
	step("drain of a container that saw the upgrade", drain)
	w.Remove()
	c.NothingLeft()
}

// available returns nil if a volume is available, and else an error with its state.
func available(v cloud.Volume) error {
	if v.State != cloud.Available {
		return fmt.Errorf("it is %s: %+v", v.State, v.Attachments)
	}
	return nil
}

// startFirst starts an update that cannot succeed: the new task is on another node while the old task uses the volume. The old
// task must not be affected, and the new one must report why it failed.
func startFirst(t *testing.T, c *cluster.Cluster, w *cluster.Writer, from *cluster.Node, before ledger.Ack) ledger.Ack {
	t.Helper()
	c.Availability(from, "pause")
	defer c.Availability(from, "active")
	w.Update("--update-order", "start-first", "--update-failure-action", "rollback", "--env-add", "CHANGED=2")
	c.Eventually("the update is rolled back", func() error {
		state, err := c.Manager().TryDocker("service", "inspect", "--format", "{{.UpdateStatus.State}}", w.Service)
		if err == nil && state != "rollback_completed" {
			err = fmt.Errorf("%s\n%s", state, w.Tasks())
		}
		return err
	})
	after := w.Await("it writes on")
	assert.Equal(t, before.Task, after.Task, "the old task stays\n%s", w.Tasks())
	holder := from.Instance
	for _, e := range w.Errors() {
		if reported := e.Refusal(); strings.Contains(reported, "still attached to node") { // others are from earlier steps
			assert.Regexp(t, "^still attached to node "+holder+": .*; stop its container on node "+holder+"; if that node is unreachable, stop instance "+holder+" in EC2", reported)
			return after
		}
	}
	assert.Fail(t, "no task reports the holder of the volume", w.Tasks())
	return after
}
