package cluster_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
)

// outcome is what happens to a service when its node fails.
type outcome string

const (
	moves   outcome = "moves"   // it continues on another node
	stays   outcome = "stays"   // the task continues on its node
	renewed outcome = "renewed" // another task continues, on any node
	refused outcome = "refused" // it does not move; `docker service ps` says why
)

// failure is a failure of a node.
type failure struct {
	name     string
	runs     runs
	fenced   bool                                           // TAKEOVER=fence powers the node off, and does before the end
	prepare  func(c *cluster.Cluster, victim *cluster.Node) // before the services are moved to the node
	begin    func(t *testing.T, c *cluster.Cluster, victim *cluster.Node)
	end      func(c *cluster.Cluster, victim *cluster.Node) // repairs the node
	expected map[string]outcome                             // by policy; the others are not affected by it, or as by another failure
	cause    string                                         // start of the refusal, with NODE for the node; "": it is still attached
	advice   string                                         // advice in the refusal, a regular expression
	doubt    string                                         // in the refusal with TAKEOVER=fence: why the node is not powered off; "" is advice
	over     string                                         // name of the end in the table
}

// runs are those that a failure is part of. Only a full one writes the table, and has TAKEOVER=fence.
type runs int

const (
	everyRun runs = iota
	fullRun
)

// fence is what is expected of a failure that is for TAKEOVER=fence only.
func fence(o outcome) map[string]outcome { return map[string]outcome{"fence": o} }

func each(never, stopped, fence, always outcome) map[string]outcome {
	return map[string]outcome{"never": never, "stopped": stopped, "fence": fence, "always": always}
}

// skipped tells whether a failure is not part of this run.
func (f *failure) skipped() bool {
	return f.runs == fullRun && testing.Short()
}

// passes are the policies whose services fail together. A node that is powered off by one policy is so for all.
func (f *failure) passes() (passes [][]string) {
	all := slices.DeleteFunc(slices.Clone(policies), func(policy string) bool { return f.expected[policy] == "" })
	if i := slices.Index(all, "fence"); i >= 0 && f.fenced && len(all) > 1 {
		return [][]string{slices.Delete(all, i, i+1), {"fence"}}
	}
	return [][]string{all}
}

// refusalOf returns how a refusal of a policy begins, and the advice in it.
func (f *failure) refusalOf(policy string, victim *cluster.Node) (cause, advice string) {
	advice = f.advice
	if policy == "fence" {
		advice = cmp.Or(f.doubt, f.advice)
	}
	named := strings.NewReplacer("NODE", victim.Instance)
	return named.Replace(cmp.Or(f.cause, "still attached to node NODE")), named.Replace(advice)
}

// repair ends all failures of a node but those of its engine.
func repair(_ *cluster.Cluster, victim *cluster.Node) {
	victim.Heal()
	switch {
	case !victim.On():
		victim.PowerOn()
	case victim.Frozen():
		victim.Thaw()
	}
}

// forget makes all nodes forget which others they have ever heard of.
func forget(c *cluster.Cluster) {
	for _, n := range c.Nodes { // all of them, before they tell each other again
		n.Run("sh", "-ec", "pkill -STOP -x blockvol; rm -f /var/lib/blockvol/*/state/peers.json")
	}
	for _, n := range c.Nodes {
		n.KillPlugin()
	}
}

// is returns a function that returns nil if the cloud shows a node in a state.
func is(c *cluster.Cluster, n *cluster.Node, want cloud.InstanceState) func() error {
	return func() error {
		if i, _ := c.Cloud.Instance(n.Instance); i.State != want {
			return fmt.Errorf("it is %s", i.State)
		}
		return nil
	}
}

var cloudUp func()

var failures = []failure{
	{
		name:     "The plugin is killed (`kill -9`)",
		runs:     fullRun, // on one engine: test/e2e
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.KillPlugin() },
		expected: each(stays, stays, stays, stays),
	},
	{
		name:     "dockerd is killed; its supervisor starts it again after 2 s",
		runs:     fullRun, // on one engine: test/e2e
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.KillEngine(false) },
		expected: each(renewed, renewed, renewed, renewed),
	},
	{
		name:     "dockerd is killed and stays down; its containers go on",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.KillEngine(true) },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.StartEngine() },
		expected: each(refused, refused, refused, refused),
		cause:    "in use on node NODE by container ",
		advice:   "stop its container on node NODE",
		over:     "dockerd is started",
	},
	{
		name:     "dockerd hangs (`kill -STOP`), and goes on later",
		runs:     fullRun,
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.HangEngine() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.ResumeEngine() },
		expected: each(refused, refused, refused, refused),
		cause:    "in use on node NODE by container ",
		advice:   "stop its container on node NODE",
		over:     "dockerd goes on",
	},
	{
		name: "The node's root disk is full, and the node is drained",
		runs: fullRun,
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			victim.FillRoot()
			c.Availability(victim, "drain")
		},
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			victim.Run("rm", "/fill")
			c.Availability(victim, "active")
		},
		expected: each(moves, moves, moves, moves),
	},
	{
		name: "The node is cut off from the managers only",
		runs: fullRun,
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			c.Availability(c.Nodes[0], "pause") // or the manager's own node gets the task, which cannot ask the node, either
			victim.CutFrom(c.Nodes[0])
		},
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			victim.Heal()
			c.Availability(c.Nodes[0], "active")
		},
		expected: each(refused, refused, refused, refused),
		cause:    "in use on node NODE by container ",
		advice:   "stop its container on node NODE",
		over:     "the network is back",
	},
	{
		name: "The node is cut off from the managers, and a firewall closes its port 7373",
		runs: fullRun,
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			c.Availability(c.Nodes[0], "pause")
			victim.Firewall(peerPorts)
			victim.CutFrom(c.Nodes[0])
		},
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			victim.Heal()
			c.Availability(c.Nodes[0], "active")
		},
		expected: each(refused, refused, refused, moves),
		advice:   "if that node is unreachable, stop instance NODE",
		doubt:    "is not powered off: .*heard of (it )?[0-9]+s ago",
		over:     "the network is back",
	},
	{
		name: "A firewall has always closed port 7373 of all nodes, and the node is cut off from the others",
		runs: fullRun,
		prepare: func(c *cluster.Cluster, _ *cluster.Node) {
			for _, n := range c.Nodes {
				n.Firewall(peerPorts)
			}
			forget(c)
		},
		begin: func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.CutFromNodes() },
		end: func(c *cluster.Cluster, _ *cluster.Node) {
			for _, n := range c.Nodes {
				n.Heal()
			}
		},
		expected: each(refused, refused, refused, moves),
		advice:   "if that node is unreachable, stop instance NODE",
		doubt:    "no node has heard of it before",
		over:     "the network is back",
	},
	{
		name:     "The node is cut off from all others",
		fenced:   true,
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.CutFromNodes() },
		end:      repair,
		expected: each(refused, refused, moves, moves),
		advice:   "if that node is unreachable, stop instance NODE",
		over:     "the network is back",
	},
	{
		name:   "The node is cut off from all others and from the cloud's API",
		runs:   fullRun,
		fenced: true,
		begin: func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) {
			victim.CutFromNodes()
			victim.CutFromCloud()
		},
		end:      repair,
		expected: each(refused, refused, moves, moves),
		advice:   "if that node is unreachable, stop instance NODE",
		over:     "the network is back",
	},
	{
		name:     "Nothing that the node sends reaches the others, but what they send reaches it",
		runs:     fullRun,
		fenced:   true,
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.Mute() },
		end:      repair,
		expected: fence(moves),
	},
	{
		name: "No node reaches another",
		runs: fullRun,
		begin: func(_ *testing.T, c *cluster.Cluster, _ *cluster.Node) {
			c.Nodes[1].CutFromNodes()
			c.Nodes[2].CutFrom(c.Nodes[0])
		},
		end: func(c *cluster.Cluster, _ *cluster.Node) {
			for _, n := range c.Nodes[1:] {
				n.Heal()
			}
		},
		expected: each(refused, refused, refused, moves),
		advice:   "if that node is unreachable, stop instance NODE",
		doubt:    "0 of the 2 other nodes answer this one",
		over:     "the network is back",
	},
	{
		name: "The node is cut off from the cloud's API, and drained",
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			victim.CutFromCloud()
			c.Availability(victim, "drain")
		},
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			victim.Heal()
			c.Availability(victim, "active")
		},
		expected: each(refused, refused, refused, moves),
		cause:    "being released by node NODE",
		over:     "the API answers the node",
	},
	{
		name:     "The node freezes, and goes on later",
		fenced:   true,
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.Freeze() },
		end:      repair,
		expected: each(refused, refused, moves, moves),
		advice:   "if that node is unreachable, stop instance NODE",
		over:     "the node goes on",
	},
	{
		name:   "The node freezes while the cloud's API is slow: 2 s for each call, 30 s to power off",
		runs:   fullRun,
		fenced: true,
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			slow := times
			slow.Stop = 30 * time.Second
			c.Cloud.SetPace(2*time.Second, lag, slow)
			victim.Freeze()
		},
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			c.Cloud.SetPace(latency, lag, times)
			repair(c, victim)
		},
		expected: fence(moves),
	},
	{
		name:   "The node freezes, and goes on while the cloud powers it off, which takes 30 s",
		runs:   fullRun,
		fenced: true,
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			slow := times
			slow.Stop = 30 * time.Second
			c.Cloud.SetPace(latency, lag, slow)
			victim.Freeze()
			c.Eventually("the cloud powers it off", is(c, victim, cloud.Stopping))
			victim.Thaw()
		},
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			c.Cloud.SetPace(latency, lag, times)
			repair(c, victim)
		},
		expected: fence(moves),
	},
	{
		name: "The node, which has another key than the others, freezes",
		runs: fullRun,
		prepare: func(c *cluster.Cluster, victim *cluster.Node) {
			for _, policy := range policies {
				victim.Configure(driverOf(policy), "PEER_KEY="+newPeerKey())
			}
			forget(c)
		},
		begin: func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.Freeze() },
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			repair(c, victim)
			for _, policy := range policies {
				victim.Configure(driverOf(policy), "PEER_KEY="+peerKeys[policy])
			}
		},
		expected: each(refused, refused, refused, moves),
		advice:   "if that node is unreachable, stop instance NODE",
		doubt:    "no node has heard of it before",
		over:     "the node goes on",
	},
	{
		name:     "The node loses power; the cloud says that it is stopped",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.PowerOff() },
		end:      repair,
		expected: each(refused, moves, moves, moves),
		advice:   "TAKEOVER=stopped would take it over",
		over:     "the node is started",
	},
	{
		name: "The node loses power while the cloud's API is down for everybody",
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			cloudUp = c.CloudDown()
			victim.PowerOff()
		},
		end: func(c *cluster.Cluster, victim *cluster.Node) {
			cloudUp()
			repair(c, victim)
		},
		expected: each(refused, refused, refused, refused),
		cause:    "the cloud has not answered yet",
		advice:   "what is mounted already is not affected",
		over:     "the API answers and the node is started",
	},
	{
		name:     "The instance is terminated, and another takes its place",
		runs:     fullRun,
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.Terminate() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.Replace() },
		expected: each(moves, moves, moves, moves),
	},
}
