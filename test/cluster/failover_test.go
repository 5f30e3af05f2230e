package cluster_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
)

// What each TAKEOVER policy makes of each failure. One failure meets three services at once, one of each policy, whose only
// task runs on the node that fails, and which write acknowledged records all the time: the same three through all failures.
// The table goes into docs/failover.md.

var writeTable = flag.String("failover.table", "", "a `file` of Markdown, in which the table of results is brought up to date")

// An outcome is what becomes of a service while its node fails.
type outcome string

const (
	moves   outcome = "moves"   // it goes on, on another node
	stays   outcome = "stays"   // the task goes on where it is
	renewed outcome = "renewed" // another task goes on, wherever
	refused outcome = "refused" // it does not go on elsewhere; `docker service ps` says why not
)

// A failure is what happens to a node.
type failure struct {
	name     string
	begin    func(t *testing.T, c *cluster.Cluster, victim *cluster.Node)
	end      func(c *cluster.Cluster, victim *cluster.Node) // makes the node well again
	expected map[string]outcome                             // by policy
	told     string                                         // how a refusal begins, if not with the holder
	advice   string                                         // and what it says to do
	over     string                                         // what the end is, in the table
}

func each(never, stopped, always outcome) map[string]outcome {
	return map[string]outcome{"never": never, "stopped": stopped, "always": always}
}

var cloudUp func()

var failures = []failure{
	{
		name:     "The plugin is killed (`kill -9`)",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.KillPlugin() },
		expected: each(stays, stays, stays),
	},
	{
		name:     "dockerd is killed; its supervisor starts it again after 2 s",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.KillEngine(false) },
		expected: each(renewed, renewed, renewed),
	},
	{
		name:     "dockerd is killed and stays down; its containers go on",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.KillEngine(true) },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.StartEngine() },
		expected: each(refused, refused, moves),
		advice:   "stop what uses it on node",
		over:     "dockerd is started",
	},
	{
		name:     "The node is cut off from the managers",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.CutFromNodes() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.Heal() },
		expected: each(refused, refused, moves),
		advice:   "if that node is cut off, stop the node in the cloud",
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
		expected: each(refused, refused, moves),
		advice:   "stop what uses it on node",
		over:     "the API answers the node",
	},
	{
		name:     "The node freezes, and goes on later",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.Freeze() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.Thaw() },
		expected: each(refused, refused, moves),
		advice:   "if that node is cut off, stop the node in the cloud",
		over:     "the node goes on",
	},
	{
		name:     "The node loses power; the cloud says that it is stopped",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.PowerOff() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.PowerOn() },
		expected: each(refused, moves, moves),
		advice:   "TAKEOVER=stopped would take it over",
		over:     "the node is started",
	},
	{
		name: "The node loses power while the cloud's API is down for everybody",
		begin: func(_ *testing.T, c *cluster.Cluster, victim *cluster.Node) {
			cloudUp = c.CloudDown()
			victim.PowerOff()
		},
		end: func(_ *cluster.Cluster, victim *cluster.Node) {
			cloudUp()
			victim.PowerOn()
		},
		expected: each(refused, refused, refused),
		told:     "the cloud has not answered yet",
		advice:   "what is mounted already is not affected",
		over:     "the API answers and the node is started",
	},
	{
		name:     "The instance is terminated, and another takes its place",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.Terminate() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.Replace() },
		expected: each(moves, moves, moves),
	},
}

// cause is how a refusal begins.
func (f *failure) cause(victim *cluster.Node) string {
	if f.told != "" {
		return f.told
	}
	return "held by node " + victim.Instance
}

// result is one cell of the table.
type result struct {
	outcome  outcome
	pause    time.Duration // the longest between two acknowledged records
	silent   bool          // nothing was written when the failure was about to end
	sentence string        // of `docker service ps`
	back     time.Duration // from the end of the failure to a record
}

func TestFailover(t *testing.T) {
	c := shared(t)
	writers := map[string]*cluster.Writer{}
	for _, policy := range policies {
		writers[policy] = c.StartWriter("ledger-"+policy, driverOf(policy))
	}
	var table []string
	for i, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			c.Use(t)
			table = append(table, fail(t, c, f, writers, c.Nodes[1+i%2]))
		})
		if t.Failed() {
			break // what comes now would fail for that
		}
	}
	c.Use(t)
	for _, policy := range policies {
		writers[policy].Remove()
	}
	c.NothingLeft()
	t.Logf("\n%s", strings.Join(table, "\n"))
	if *writeTable != "" && len(table) == len(failures) {
		require.NoError(t, bringUpToDate(*writeTable, table))
	}
}

// fail puts a node that runs all three services through a failure, and returns the table's row.
func fail(t *testing.T, c *cluster.Cluster, f failure, writers map[string]*cluster.Writer, victim *cluster.Node) string {
	t.Helper()
	gather(c, writers, victim)
	results := map[string]*result{}
	before := map[string]ledger.Ack{}
	tasks := map[string]map[string]string{} // that there are already
	for _, policy := range policies {
		tasks[policy] = writers[policy].TaskErrors()
		results[policy] = &result{outcome: f.expected[policy]}
		before[policy] = writers[policy].Await("it writes")
	}
	begin := time.Now()
	f.begin(t, c, victim)
	for _, policy := range policies {
		observe(t, c, f, writers[policy], victim, policy, before[policy], tasks[policy], begin, results[policy])
	}
	for _, policy := range policies { // nothing has changed meanwhile
		if f.expected[policy] == refused {
			last, _ := c.Ledger.Last(writers[policy].Name)
			for _, s := range c.Ledger.Sessions(writers[policy].Name) {
				assert.False(t, s.Begun.After(begin) && s.Node != victim.Name, "%s: %s is refused, and writes elsewhere: %s, up to %d", f.name, policy, s, last)
			}
		}
	}
	end := time.Now()
	for _, policy := range policies {
		_, at := c.Ledger.Last(writers[policy].Name)
		results[policy].silent = end.Sub(at) > 5*time.Second
	}
	if f.end != nil {
		f.end(c, victim)
	}
	for _, policy := range policies {
		w, r := writers[policy], results[policy]
		r.back = w.Await("it writes when the failure is over", func(a ledger.Ack) bool { return a.At.After(end) }).At.Sub(end)
		settled(t, c, w)
		r.pause = c.Ledger.Gap(w.Name, begin)
		t.Logf("%-8s %-8s pause %6.1f s  back %6.1f s  %s", policy, r.outcome, r.pause.Seconds(), r.back.Seconds(), r.sentence)
	}
	c.NoViolations()
	t.Logf("the failure took %.0f s, its end %.0f s", end.Sub(begin).Seconds(), time.Since(end).Seconds())
	return row(f, results)
}

// gather moves all services to one node.
func gather(c *cluster.Cluster, writers map[string]*cluster.Writer, to *cluster.Node) {
	c.Place(to, func() {
		for _, w := range writers {
			if w.Node() != to {
				w.Update("--force")
			}
		}
		for _, w := range writers {
			w.Await("it is on "+to.Name, ledger.On(to.Name))
		}
	})
}

// observe waits for what is to become of a service while its node fails.
func observe(t *testing.T, c *cluster.Cluster, f failure, w *cluster.Writer, victim *cluster.Node, policy string, before ledger.Ack, tasks map[string]string, begin time.Time, r *result) {
	t.Helper()
	switch r.outcome {
	case moves:
		if _, err := w.TryAwait(3*time.Minute, ledger.NotOn(victim.Name), ledger.After(before.Seq)); err != nil {
			t.Fatalf("%s: %s does not go on elsewhere: %v\n%s", f.name, policy, err, w.Tasks())
		}
	case stays:
		later := func(a ledger.Ack) bool { return a.At.After(begin.Add(5*time.Second)) && a.Task == before.Task }
		if _, err := w.TryAwait(3*time.Minute, ledger.After(before.Seq), later); err != nil {
			t.Fatalf("%s: %s does not go on: %v\n%s", f.name, policy, err, w.Tasks())
		}
	case renewed:
		if _, err := w.TryAwait(3*time.Minute, ledger.After(before.Seq), func(a ledger.Ack) bool { return a.Task != before.Task }); err != nil {
			t.Fatalf("%s: %s does not go on: %v\n%s", f.name, policy, err, w.Tasks())
		}
	case refused:
		c.Eventually("the refusal is told", func() error {
			for id, text := range w.TaskErrors() {
				if _, old := tasks[id]; old {
					continue
				}
				if _, told, ok := strings.Cut(text, "VolumeDriver.Mount: "); ok && strings.HasPrefix(told, f.cause(victim)) && strings.Contains(told, f.advice) {
					r.sentence = strings.TrimSuffix(told, `"`)
					return nil
				}
			}
			return errors.New(w.Tasks())
		})
	}
}

// settled waits until the service has one task that wants to run, and its volume one holder: the node that writes.
func settled(t *testing.T, c *cluster.Cluster, w *cluster.Writer) {
	t.Helper()
	c.Eventually(w.Name+" has settled", func() error {
		attachments := w.Volume().Attachments
		if len(attachments) != 1 || attachments[0].Instance != w.Node().Instance {
			return fmt.Errorf("%s writes, and the volume is attached to %v", w.Node().Name, attachments)
		}
		return nil
	})
}

func row(f failure, results map[string]*result) string {
	cells := []string{f.name}
	for _, policy := range policies {
		r := results[policy]
		switch r.outcome {
		case moves:
			cells = append(cells, fmt.Sprintf("continues on another node after %.0f s", r.pause.Seconds()))
		case stays, renewed:
			cells = append(cells, fmt.Sprintf("continues, pause %.0f s", r.pause.Seconds()))
		case refused:
			if r.silent {
				cells = append(cells, fmt.Sprintf("refused; continues %.0f s after %s", r.back.Seconds(), f.over))
			} else {
				cells = append(cells, "refused elsewhere, goes on where it is")
			}
		}
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

const (
	tableBegins = "<!-- The table is written by `make test-cluster`. -->\n"
	tableEnds   = "<!-- Here it ends. -->\n"
)

// bringUpToDate puts the rows between the marks in a file.
func bringUpToDate(file string, rows []string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), tableBegins)
	_, after, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		return fmt.Errorf("%s has not the marks between which the table stands", file)
	}
	head := "| failure | `never` | `stopped` | `always` |\n|---|---|---|---|\n"
	return os.WriteFile(file, []byte(before+tableBegins+head+strings.Join(rows, "\n")+"\n"+tableEnds+after), 0o644)
}
