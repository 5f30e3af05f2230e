package cluster_test

import (
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cluster"
)

// The stack files in examples/ as they are, with the real PostgreSQL and Redis. Their node loses power under load.

func TestDatabasesOutliveTheirNode(t *testing.T) {
	c := shared(t)
	begin := time.Now()
	step := func(format string, args ...any) {
		t.Logf("%6.1f s  %s", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	doomed := c.Nodes[1]
	c.Secret("postgres-password", "c2VjcmV0")
	databases := []database{&postgres{}}
	c.Place(doomed, func() {
		for _, d := range databases {
			d.deploy(c)
		}
		for _, d := range databases {
			step("%s runs on %s", d, d.await(nil))
		}
	})
	clients := c.Manager()
	for _, d := range databases {
		d.load(t, clients)
		step("%s is under load", d)
	}
	doomed.PowerOff()
	step("%s has lost power", doomed.Name)
	for _, d := range databases {
		step("%s runs on %s", d, d.await(doomed))
	}
	for _, d := range databases {
		d.check(t)
		step("%s has all that it acknowledged", d)
	}
	doomed.PowerOn()
	step("%s has power again", doomed.Name)
	for _, d := range databases {
		d.remove(t)
	}
	c.Manager().Docker("secret", "rm", "postgres-password")
	step("all is removed")
}

// A database is what a test does with one of the stacks.
type database interface {
	fmt.Stringer
	deploy(c *cluster.Cluster)
	await(not *cluster.Node) (node string)
	load(t *testing.T, clients *cluster.Node)
	check(t *testing.T)
	remove(t *testing.T)
}

// loads is a container for what runs beside a database: clients, on a node that stays. What they print has been acknowledged.
type loads struct {
	c         *cluster.Cluster
	node      *cluster.Node
	name      string
	noted     *cluster.Output
	container string
}

// start starts the container, in a network, with what notes each acknowledged number on a line of its own.
func (l *loads) start(network, image string, arguments ...string) {
	args := append([]string{"run", "--detach", "--name", l.name, "--network", network, "--entrypoint", "sleep"}, arguments...)
	l.container = l.node.Docker(append(args, image, "1d")...)
}

func (l *loads) exec(args ...string) (string, error) {
	return l.node.TryDocker(append([]string{"exec", l.name}, args...)...)
}

// note runs what prints each number that was acknowledged.
func (l *loads) note(script string) {
	l.noted = l.node.Stream("exec", l.name, "sh", "-c", script)
	l.c.Eventually("writes are acknowledged", func() error {
		lines := l.noted.Lines()
		if len(lines) < 100 {
			return fmt.Errorf("%d lines: %q", len(lines), lines)
		}
		return nil
	})
}

// last ends the clients and returns the last number that was acknowledged.
func (l *loads) last(t *testing.T) int {
	t.Helper()
	l.noted.End()
	l.node.Docker("rm", "--force", l.name)
	lines := l.noted.Lines()
	last, err := 0, errors.New("nothing was acknowledged")
	for _, line := range lines { // what follows the last number is what the client says of the end
		n, bad := strconv.Atoi(line)
		if bad != nil {
			break
		}
		require.Equal(t, last+1, n, "%q", lines)
		last, err = n, nil
	}
	require.NoError(t, err, "%q", lines)
	return last
}

type postgres struct {
	c       *cluster.Cluster
	stack   *cluster.Stack
	task    *cluster.Task
	clients loads
}

func (*postgres) String() string { return "PostgreSQL" }

func (p *postgres) deploy(c *cluster.Cluster) {
	p.c, p.stack = c, c.Deploy("shop", "../../examples/postgres.yml")
}

func (p *postgres) await(not *cluster.Node) string {
	p.task = p.stack.Task("postgres", not)
	p.c.Eventually("PostgreSQL answers at its published port", func() error { return p.c.PostgresAnswers(p.c.Manager().Address + ":5432") })
	return p.task.Node.Name
}

func (p *postgres) sql(query string) string {
	return p.task.Exec("psql", "--username=postgres", "--no-align", "--tuples-only", "--quiet", "--command="+query)
}

// load has clients come by the published port of a node that the database is not on.
func (p *postgres) load(t *testing.T, clients *cluster.Node) {
	t.Helper()
	p.sql("create extension amcheck; create table kept (n bigint primary key)")
	p.task.Exec("pgbench", "-i", "--quiet", "--username=postgres", "postgres")
	p.clients = loads{c: p.c, node: clients, name: "postgres-clients"}
	p.clients.start("host", "postgres:17", "--env", "PGPASSWORD=c2VjcmV0", "--env", "PGUSER=postgres", "--env", "PGHOST="+clients.Address)
	p.clients.node.Docker("exec", "--detach", "postgres-clients", "pgbench", "--client=2", "--time=1000", "postgres")
	p.clients.note(`n=0; while :; do n=$((n + 1)); echo "insert into kept values ($n) returning n;"; done |
		psql --no-align --tuples-only --quiet`)
	p.c.Eventually("pgbench commits", func() error {
		if n := p.sql("select count(*) from pgbench_history"); len(n) < 2 {
			return fmt.Errorf("%s transactions", n)
		}
		return nil
	})
}

func (p *postgres) check(t *testing.T) {
	t.Helper()
	noted := p.clients.last(t)
	kept, err := strconv.Atoi(p.sql("select count(*) from kept"))
	require.NoError(t, err)
	assert.Contains(t, []int{noted, noted + 1}, kept, "rows kept: what was acknowledged, and what was under way")
	assert.Equal(t, strconv.Itoa(kept), p.sql("select max(n) from kept"), "none missing")
	assert.Equal(t, "t|t|t", p.sql(`select sum(delta) = (select sum(abalance) from pgbench_accounts),
		sum(delta) = (select sum(bbalance) from pgbench_branches),
		sum(delta) = (select sum(tbalance) from pgbench_tellers) from pgbench_history`), "no transaction by halves")
	assert.Equal(t, "on", p.sql("show data_checksums"))
	p.task.Exec("pg_amcheck", "--username=postgres", "--heapallindexed", "postgres")
	t.Logf("PostgreSQL: %d inserts acknowledged, %d kept; %s transactions of pgbench", noted, kept, p.sql("select count(*) from pgbench_history"))
}

func (p *postgres) remove(t *testing.T) {
	t.Helper()
	p.stack.Remove()
}
