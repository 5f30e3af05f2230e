package cluster_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
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
// failures. The table is for docs/failover.md. -run TestFailover/freezes runs some of them.

var writeTable = flag.String("failover.table", "", "a `file` of Markdown, in whose table the rows of the failures that were run are replaced")

// subject is a service during a failure: one cell of the table.
type subject struct {
	*cluster.Writer
	policy   string
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
	writers := map[string]*cluster.Writer{} // by policy
	var specs []cluster.WriterSpec
	for _, policy := range policies {
		specs = append(specs, cluster.WriterSpec{Name: "ledger-" + policy, Driver: driverOf(policy)})
	}
	c.Place(c.Nodes[1], func() { // where the first failure will be
		for i, w := range c.StartWriters(specs...) {
			writers[policies[i]] = w
		}
	})
	rows := map[string]string{} // by failure
	for _, f := range failures {
		if f.skipped() {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			c.Use(t)
			rows[f.name] = fail(t, c, &f, writers)
			t.Logf("%s", rows[f.name])
			if *writeTable != "" && !testing.Short() {
				require.NoError(t, updateTable(*writeTable, rows))
			}
		})
		if t.Failed() {
			return // the following failures would fail for the same reason
		}
	}
	c.Use(t)
	c.RemoveWriters(slices.Collect(maps.Values(writers))...)
	c.NothingLeft()
}

// fail runs a failure, and returns the table's row.
func fail(t *testing.T, c *cluster.Cluster, f *failure, writers map[string]*cluster.Writer) string {
	t.Helper()
	cells := map[string]string{}
	for _, pass := range f.passes() {
		var failing, others []*cluster.Writer
		for _, policy := range policies {
			if slices.Contains(pass, policy) {
				failing = append(failing, writers[policy])
			} else {
				others = append(others, writers[policy])
			}
		}
		victim := cheapest(c.Nodes[1:], failing, others)
		if f.prepare != nil {
			f.prepare(c, victim)
		}
		avoid(c, victim, others...)
		gather(c, victim, failing...)
		if f.prepare == nil && slices.Contains(pass, "fence") {
			for _, n := range c.Nodes { // one that nobody has ever heard of may be behind a firewall
				n.Met(driverOf("fence"))
			}
		}
		for i, s := range failNode(t, c, f, pass, failing, victim) {
			cells[pass[i]] = s.cell(f)
		}
	}
	row := []string{f.name}
	for _, policy := range policies {
		row = append(row, cmp.Or(cells[policy], "–"))
	}
	return "| " + strings.Join(row, " | ") + " |"
}

// failNode runs a failure of a node that has the services of some policies.
func failNode(t *testing.T, c *cluster.Cluster, f *failure, pass []string, failing []*cluster.Writer, victim *cluster.Node) (subjects []*subject) {
	t.Helper()
	for i, w := range failing {
		earlier := w.Errors()
		subjects = append(subjects, &subject{Writer: w, policy: pass[i], outcome: f.expected[pass[i]], earlier: earlier, before: w.Await("it writes")})
	}
	begin, fences := time.Now(), c.PowerOffs()
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
	var fenced []string
	if f.fenced && slices.Contains(pass, "fence") {
		fenced = append(fenced, victim.Instance)
	}
	assert.ElementsMatch(t, fenced, c.PowerOffs()[len(fences):], "powered off by TAKEOVER=fence")
	if len(fenced) > 0 {
		logFence(t, c, subjects[len(subjects)-1], begin)
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
	return subjects
}

// logFence logs when the parts of a failover with a power-off were reached.
func logFence(t *testing.T, c *cluster.Cluster, s *subject, begin time.Time) {
	t.Helper()
	at := func(when time.Time) string { return fmt.Sprintf("%.1f s", when.Sub(begin).Seconds()) }
	manager := c.Manager()
	ids := strings.Fields(manager.Docker("service", "ps", "--no-trunc", "--quiet", s.Service))
	skew, created := ahead(manager), time.Now()
	for line := range strings.Lines(manager.Docker(append([]string{"inspect", "--type", "task", "--format", "{{json .CreatedAt}}"}, ids...)...)) {
		if task, err := time.Parse(`"`+time.RFC3339Nano+`"`, strings.TrimSpace(line)); err == nil && task.Add(-skew).After(begin) && task.Add(-skew).Before(created) {
			created = task.Add(-skew)
		}
	}
	parts := []string{at(created) + " another task"}
	for _, n := range c.Nodes {
		for _, call := range trace.since(begin, n.Instance) {
			if slices.Contains([]string{"StopInstances", "DetachVolume", "AttachVolume"}, call.action) {
				parts = append(parts, fmt.Sprintf("%s %s of %s", at(call.begin), call.action, n.Name))
			}
		}
	}
	t.Logf("%s, %s a record", strings.Join(parts, ", "), at(s.Latest().Begun))
}

// cheapest returns the node to and from which the fewest services must move.
func cheapest(nodes []*cluster.Node, to, from []*cluster.Writer) *cluster.Node {
	there := map[*cluster.Node]int{}
	for _, w := range to {
		there[w.Node()]++
	}
	for _, w := range from {
		there[w.Node()]--
	}
	return slices.MaxFunc(nodes, func(a, b *cluster.Node) int { return cmp.Compare(there[a], there[b]) })
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

// avoid moves services away from a node.
func avoid(c *cluster.Cluster, from *cluster.Node, writers ...*cluster.Writer) {
	here := slices.DeleteFunc(writers, func(w *cluster.Writer) bool { return w.Node() != from })
	if len(here) > 0 {
		gather(c, c.Nodes[0], here...)
	}
}

// observe waits for the expected outcome.
func (s *subject) observe(t *testing.T, c *cluster.Cluster, f *failure, victim *cluster.Node, begin time.Time) {
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
		cause, advice := f.refusalOf(s.policy, victim)
		s.sentence = refusal(c, s.Writer, s.earlier, cause, advice)
	}
}

// refusal waits until a task has a new error of blockvol with this cause and advice.
func refusal(c *cluster.Cluster, w *cluster.Writer, old []cluster.TaskError, cause, advice string) (sentence string) {
	asked := regexp.MustCompile(advice)
	c.Eventually("the refusal is reported", func() error {
		for _, e := range w.Errors() {
			sentence = e.Refusal()
			if !slices.Contains(old, e) && strings.HasPrefix(sentence, cause) && asked.MatchString(sentence) {
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

func (s *subject) cell(f *failure) string {
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

// tableHead is the first two lines of the table.
func tableHead() string {
	return "| failure | `" + strings.Join(policies, "` | `") + "` |\n|---" + strings.Repeat("|---", len(policies)) + "|"
}

// updateTable replaces rows, by failure, between the marks in a file. Of the others it keeps those that have the same columns.
func updateTable(file string, rows map[string]string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), tableBegins)
	old, after, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		return fmt.Errorf("%s does not have the table's marks", file)
	}
	kept, same := strings.CutPrefix(old, tableHead()+"\n")
	table := []string{tableHead()}
	for _, f := range failures {
		row := rows[f.name]
		for line := range strings.Lines(kept) {
			if row == "" && same && strings.HasPrefix(line, "| "+f.name+" | ") {
				row = strings.TrimSuffix(line, "\n")
			}
		}
		if row != "" {
			table = append(table, row)
		}
	}
	return os.WriteFile(file, []byte(before+tableBegins+strings.Join(table, "\n")+"\n"+tableEnds+after), 0o644)
}

func TestARunOfSomeFailuresKeepsTheOtherRows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "table.md")
	first, last := failures[0].name, failures[len(failures)-1].name
	write := func(table ...string) {
		require.NoError(t, os.WriteFile(file, []byte("a\n"+tableBegins+strings.Join(table, "\n")+"\n"+tableEnds+"b\n"), 0o644))
	}
	reads := func(table ...string) {
		t.Helper()
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, "a\n"+tableBegins+strings.Join(table, "\n")+"\n"+tableEnds+"b\n", string(text))
	}
	write(tableHead(), "| "+last+" | old |", "| a failure of the past | old |")
	require.NoError(t, updateTable(file, map[string]string{first: "| " + first + " | new |"}))
	reads(tableHead(), "| "+first+" | new |", "| "+last+" | old |")

	write("| other | columns |\n|---|---|", "| "+last+" | old |")
	require.NoError(t, updateTable(file, map[string]string{first: "| " + first + " | new |"}))
	reads(tableHead(), "| "+first+" | new |")
}
