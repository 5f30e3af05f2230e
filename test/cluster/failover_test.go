package cluster_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
	"github.com/blockvol/blockvol/test/violation"
)

// The effect of each TAKEOVER policy in each failure. Each failure affects three services at once, one for each policy. The
// only task of each runs on the node that fails and writes acknowledged records all the time. The same services run through all
// failures. The table is for docs/failover.md.

var writeTable = flag.String("failover.table", "", "a `file` of Markdown, in which the table of results is brought up to date")

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
	begin    func(t *testing.T, c *cluster.Cluster, victim *cluster.Node)
	end      func(c *cluster.Cluster, victim *cluster.Node) // repairs the node
	expected map[string]outcome                             // by policy
	cause    string                                         // start of the refusal, with NODE for the node; "": it is still attached
	advice   string                                         // advice in the refusal
	over     string                                         // name of the end in the table
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
		expected: each(refused, refused, refused),
		cause:    "in use on node NODE by container ",
		advice:   "stop its container on node NODE",
		over:     "dockerd is started",
	},
	{
		name:     "The node is cut off from the managers",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.CutFromNodes() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.Heal() },
		expected: each(refused, refused, moves),
		advice:   "if that node is unreachable, stop instance NODE",
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
		cause:    "being released by node NODE",
		over:     "the API answers the node",
	},
	{
		name:     "The node freezes, and goes on later",
		begin:    func(_ *testing.T, _ *cluster.Cluster, victim *cluster.Node) { victim.Freeze() },
		end:      func(_ *cluster.Cluster, victim *cluster.Node) { victim.Thaw() },
		expected: each(refused, refused, moves),
		advice:   "if that node is unreachable, stop instance NODE",
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
		cause:    "the cloud has not answered yet",
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

// refusalOf returns how a refusal begins, and the advice in it.
func (f *failure) refusalOf(victim *cluster.Node) (cause, advice string) {
	named := strings.NewReplacer("NODE", victim.Instance)
	return named.Replace(cmp.Or(f.cause, "still attached to node NODE")), named.Replace(f.advice)
}

// subject is a service during a failure: one cell of the table.
type subject struct {
	*cluster.Writer
	outcome  outcome             // expected outcome
	before   ledger.Ack          // the last record before the failure
	earlier  []cluster.TaskError // errors before the failure
	pause    time.Duration       // longest time between two acknowledged records
	silent   bool                // nothing was written right before the end of the failure
	sentence string              // error in `docker service ps`
	back     time.Duration       // time from the end of the failure to a record
	moving   time.Duration       // longest pause after that record until the service has settled
}

func TestFailover(t *testing.T) {
	c := shared(t)
	var writers []*cluster.Writer // in the order of policies
	for _, policy := range policies {
		writers = append(writers, c.StartWriter("ledger-"+policy, driverOf(policy)))
	}
	var table []string
	for _, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			c.Use(t)
			table = append(table, fail(t, c, f, writers, busiest(c.Nodes[1:], writers)))
		})
		if t.Failed() {
			break // the following failures would fail for the same reason
		}
	}
	c.Use(t)
	c.RemoveWriters(writers...)
	c.NothingLeft()
	t.Logf("\n%s", strings.Join(table, "\n"))
	if *writeTable != "" && len(table) == len(failures) {
		require.NoError(t, updateTable(*writeTable, table))
	}
}

// fail runs a failure of a node that has all three services, and returns the table's row.
func fail(t *testing.T, c *cluster.Cluster, f failure, writers []*cluster.Writer, victim *cluster.Node) string {
	t.Helper()
	gather(c, victim, writers...)
	var subjects []*subject
	for i, w := range writers {
		earlier := w.Errors()
		subjects = append(subjects, &subject{Writer: w, outcome: f.expected[policies[i]], earlier: earlier, before: w.Await("it writes")})
	}
	begin := time.Now()
	f.begin(t, c, victim)
	for _, s := range subjects {
		s.observe(t, c, f, victim, begin)
	}
	for _, s := range subjects { // nothing has changed during the failure
		if s.outcome == refused {
			for _, session := range c.Ledger.Sessions(s.Name) {
				assert.False(t, session.Begun.After(begin) && session.Node != victim.Name,
					violation.Textf("%s is refused, and writes elsewhere: %s", s.Name, session))
			}
		}
	}
	end := time.Now()
	for _, s := range subjects {
		_, at := c.Ledger.Last(s.Name)
		s.silent = end.Sub(at) > 5*time.Second
	}
	if f.end != nil {
		f.end(c, victim)
	}
	for _, s := range subjects {
		back := s.Await("it writes when the failure is over", func(a ledger.Ack) bool { return a.At.After(end) }).At
		settled(c, s.Writer)
		s.back, s.pause, s.moving = back.Sub(end), c.Ledger.Gap(s.Name, begin), c.Ledger.Gap(s.Name, back)
		t.Logf("%-15s %-8s pause %6.1f s  back %6.1f s  moving %6.1f s  %s", s.Name, s.outcome,
			s.pause.Seconds(), s.back.Seconds(), s.moving.Seconds(), s.sentence)
	}
	c.NoViolations()
	t.Logf("the failure took %.0f s, its end %.0f s", end.Sub(begin).Seconds(), time.Since(end).Seconds())
	cells := []string{f.name}
	for _, s := range subjects {
		cells = append(cells, s.cell(f))
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// busiest returns the node to which the fewest services must move.
func busiest(nodes []*cluster.Node, writers []*cluster.Writer) *cluster.Node {
	count := map[*cluster.Node]int{}
	for _, w := range writers {
		count[w.Node()]++
	}
	return slices.MaxFunc(nodes, func(a, b *cluster.Node) int { return cmp.Compare(count[a], count[b]) })
}

// gather moves all services to one node.
func gather(c *cluster.Cluster, to *cluster.Node, writers ...*cluster.Writer) {
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

// observe waits for the expected outcome.
func (s *subject) observe(t *testing.T, c *cluster.Cluster, f failure, victim *cluster.Node, begin time.Time) {
	t.Helper()
	goesOn := func(how string, condition func(ledger.Ack) bool) {
		if _, err := s.TryAwait(3*time.Minute, ledger.After(s.before.Seq), condition); err != nil {
			t.Fatalf("%s: %s does not go on %s: %v\n%s", f.name, s.Name, how, err, s.Story())
		}
	}
	switch s.outcome {
	case moves:
		goesOn("elsewhere", ledger.NotOn(victim.Name))
	case stays:
		goesOn("where it is", func(a ledger.Ack) bool { return a.At.After(begin.Add(5*time.Second)) && a.Task == s.before.Task })
	case renewed:
		goesOn("as another task", ledger.NotBy(s.before.Task))
	case refused:
		cause, advice := f.refusalOf(victim)
		s.sentence = refusal(c, s.Writer, s.earlier, cause, advice)
	}
}

// refusal waits until a task has a new error of blockvol with this cause and advice.
func refusal(c *cluster.Cluster, w *cluster.Writer, old []cluster.TaskError, cause, advice string) (sentence string) {
	c.Eventually("the refusal is reported", func() error {
		for _, e := range w.Errors() {
			sentence = e.Refusal()
			if !slices.Contains(old, e) && strings.HasPrefix(sentence, cause) && strings.Contains(sentence, advice) {
				return nil
			}
		}
		return errors.New(w.Tasks())
	})
	return sentence
}

// settled waits until the only wanted task writes and its node is the volume's only holder.
func settled(c *cluster.Cluster, w *cluster.Writer) {
	c.Eventually(w.Name+" has settled", func() error {
		wanted, err := w.Wanted()
		if err != nil {
			return err
		}
		writes, held := w.Latest(), w.Volume().Attachments
		if len(wanted) != 1 || wanted[0] != writes.Task || len(held) != 1 || held[0].Instance != c.Node(writes.Node).Instance {
			return fmt.Errorf("%s on %s writes, %v are wanted, and the volume is attached to %v", writes.Task, writes.Node, wanted, held)
		}
		return nil
	})
}

func (s *subject) cell(f failure) string {
	switch {
	case s.outcome == moves:
		return fmt.Sprintf("continues on another node after %.0f s", s.pause.Seconds())
	case s.outcome != refused:
		return fmt.Sprintf("continues, pause %.0f s", s.pause.Seconds())
	}
	cell := "refused elsewhere, goes on where it is"
	if s.silent {
		cell = fmt.Sprintf("refused; continues %.0f s after %s", s.back.Seconds(), f.over)
	}
	if s.moving > 2*time.Second {
		cell += fmt.Sprintf("; moves when %s, pause %.0f s", f.over, s.moving.Seconds())
	}
	return cell
}

const (
	tableBegins = "<!-- The table is written by `make test-cluster`. -->\n"
	tableEnds   = "<!-- Here it ends. -->\n"
)

// updateTable replaces the rows between the marks in a file.
func updateTable(file string, rows []string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), tableBegins)
	_, after, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		return fmt.Errorf("%s does not have the table's marks", file)
	}
	head := "| failure | `never` | `stopped` | `always` |\n|---|---|---|---|\n"
	return os.WriteFile(file, []byte(before+tableBegins+head+strings.Join(rows, "\n")+"\n"+tableEnds+after), 0o644)
}
