package cluster_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/violation"
)

// The stack files in examples/, unchanged, with the real PostgreSQL and Redis and with fakemongo, all in one Swarm. A node with
// tasks of each loses power under load.
func TestDatabasesSurvivePowerLossOfTheirNode(t *testing.T) {
	long(t)
	c := shared(t)
	begin := time.Now()
	step := func(format string, args ...any) {
		t.Logf("%6.1f s  %s", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	outside, victim := c.Nodes[0], c.Nodes[1]
	secrets := []string{"postgres-password", "mongo-key", "mongo-password"}
	for _, secret := range secrets {
		c.Secret(secret, "c2VjcmV0")
	}
	p, r := &postgres{c: c}, &redis{c: c}
	m, s := &mongodb{c: c}, &sessions{c: c}

	// One after the other: eight emulated mkfs at once would take longer than Docker waits.
	c.Place(victim, func() {
		p.stack = c.Deploy("shop", "../../examples/postgres.yml")
		p.await(nil)
		r.stack = c.Deploy("cache", "../../examples/redis.yml")
		r.await(nil)
	})
	step("PostgreSQL and Redis run on %s", victim.Name)
	// Three of the four members have room on the third node, so at least one is on the node that fails.
	c.Availability(outside, "pause")
	m.stack = c.Deploy("db", "../../examples/mongodb.yml")
	m.initiated("new")
	m.begin()
	c.Availability(outside, "active")
	step("MongoDB's members have found each other")
	// The replicas are spread over all three nodes.
	s.stack = c.Deploy("web", "../../examples/replicas.yml")
	s.begin()
	step("the replicas have a disk each")
	p.begin(outside)
	r.begin(outside)
	step("PostgreSQL and Redis are under load")

	victim.PowerOff()
	step("%s has lost power", victim.Name)
	p.await(victim)
	step("PostgreSQL answers on %s", p.task.Node.Name)
	r.await(victim)
	step("Redis answers on %s", r.task.Node.Name)
	p.check(t)
	r.check(t)
	m.check(t, victim)
	s.check(t, victim)
	step("all have what they acknowledged")

	victim.PowerOn()
	step("%s has power again", victim.Name)
	c.Remove(p.stack, r.stack, m.stack, s.stack)
	for _, v := range c.Cloud.Volumes() {
		if name, ours := v.Tags["blockvol:name"]; ours {
			c.CheckFileSystem(v)
			c.Manager().Docker("volume", "rm", name)
		}
	}
	c.Manager().Docker(append([]string{"secret", "rm"}, secrets...)...)
	step("all is removed")
}

// clients is a container that uses a database, on a node that stays. It records the acknowledged writes.
type clients struct {
	node  *cluster.Node
	name  string
	noted *cluster.Output
}

// startClients starts a container in a network.
func startClients(node *cluster.Node, name, network, image string, arguments ...string) *clients {
	args := append([]string{"run", "--detach", "--name", name, "--network", network, "--entrypoint", "sleep"}, arguments...)
	node.Docker(append(args, image, "1d")...)
	return &clients{node: node, name: name}
}

func (k *clients) background(args ...string) {
	k.node.Docker(append([]string{"exec", "--detach", k.name}, args...)...)
}

// note runs a script that prints the number of each acknowledged write.
func (k *clients) note(c *cluster.Cluster, script string) {
	k.noted = k.node.Stream("exec", k.name, "sh", "-c", script)
	c.Eventually("writes are acknowledged", func() error {
		lines := k.noted.Lines()
		if len(lines) < 100 {
			return fmt.Errorf("%d lines: %q", len(lines), lines)
		}
		return nil
	})
}

// last stops the clients and returns the last acknowledged number.
func (k *clients) last(t *testing.T) int {
	t.Helper()
	k.noted.End()
	k.node.Docker("rm", "--force", k.name)
	lines := k.noted.Lines()
	last, complete := 0, true
	for _, line := range lines {
		n, err := strconv.Atoi(line)
		if err != nil { // the client's error at the end of its connection; a pending write may have been done
			complete = false
			continue
		}
		if n != last+1 && (complete || n < last) {
			t.Fatalf("%s: %d was acknowledged after %d: %q", k.name, n, last, lines)
		}
		last, complete = n, true
	}
	if last == 0 {
		t.Fatalf("%s: nothing was acknowledged: %q", k.name, lines)
	}
	return last
}

type postgres struct {
	c       *cluster.Cluster
	stack   *cluster.Stack
	task    *cluster.Task
	clients *clients
}

func (p *postgres) await(not *cluster.Node) {
	p.task = p.stack.Task("postgres", not)
	p.answers()
}

// answers waits until PostgreSQL answers at the published port of a node that it may not run on.
func (p *postgres) answers() {
	p.c.Eventually("PostgreSQL answers", func() error { return p.c.PostgresAnswers(p.c.Manager().Address + ":5432") })
}

func (p *postgres) sql(query string) string {
	return p.task.Exec("psql", "--username=postgres", "--no-align", "--tuples-only", "--quiet", "--command="+query)
}

// begin starts clients that use the published port of a node that the database does not run on.
func (p *postgres) begin(node *cluster.Node) {
	p.sql("create extension amcheck; create table kept (n bigint primary key)")
	p.task.Exec("pgbench", "-i", "-I", "dtGvp", "--quiet", "--username=postgres", "postgres")
	p.clients = startClients(node, "postgres-clients", "host", "postgres:17",
		"--env", "PGPASSWORD=c2VjcmV0", "--env", "PGUSER=postgres", "--env", "PGHOST="+node.Address)
	p.clients.background("pgbench", "--client=2", "--time=1000", "postgres")
	p.clients.note(p.c, `n=0; while :; do n=$((n + 1)); echo "insert into kept values ($n) returning n;"; done |
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
	assert.Contains(t, []int{noted, noted + 1}, kept, violation.Textf("the rows are not the acknowledged ones and at most one pending one"))
	assert.Equal(t, strconv.Itoa(kept), p.sql("select max(n) from kept"), violation.Textf("rows are missing"))
	assert.Equal(t, "t|t|t", p.sql(`select sum(delta) = (select sum(abalance) from pgbench_accounts),
		sum(delta) = (select sum(bbalance) from pgbench_branches),
		sum(delta) = (select sum(tbalance) from pgbench_tellers) from pgbench_history`), violation.Textf("a transaction is there by halves"))
	assert.Equal(t, "on", p.sql("show data_checksums"))
	p.task.Exec("pg_amcheck", "--username=postgres", "--heapallindexed", "postgres")
	t.Logf("PostgreSQL: %d inserts acknowledged, %d kept, and %s transactions of pgbench", noted, kept, p.sql("select count(*) from pgbench_history"))
}

type redis struct {
	c       *cluster.Cluster
	stack   *cluster.Stack
	task    *cluster.Task
	clients *clients
}

func (r *redis) await(not *cluster.Node) { r.task = r.stack.Task("redis", not) }

// begin starts clients on another node that use the service's name.
func (r *redis) begin(node *cluster.Node) {
	r.clients = startClients(node, "redis-clients", "cache_cache", "redis:8")
	r.clients.background("redis-benchmark", "-h", "redis", "-q", "-l", "-c", "5", "-r", "100000", "-t", "set,lpush")
	r.clients.note(r.c, "while :; do echo incr kept; done | redis-cli -h redis")
	r.c.Eventually("redis-benchmark writes", func() error {
		if n := r.task.Exec("redis-cli", "dbsize"); len(n) < 3 {
			return fmt.Errorf("%s keys", n)
		}
		return nil
	})
}

func (r *redis) check(t *testing.T) {
	t.Helper()
	noted := r.clients.last(t)
	kept, err := strconv.Atoi(r.task.Exec("redis-cli", "get", "kept"))
	require.NoError(t, err)
	assert.Contains(t, []int{noted, noted + 1}, kept, violation.Textf("the count is not the acknowledged one, or one more"))
	out := r.task.Exec("redis-check-aof", "appendonlydir/appendonly.aof.manifest")
	assert.Contains(t, out, "All AOF files and manifest are valid")
	t.Logf("Redis: %d increments acknowledged, %d kept, among %s keys", noted, kept, r.task.Exec("redis-cli", "dbsize"))
}

type mongodb struct {
	c      *cluster.Cluster
	stack  *cluster.Stack
	before map[string]*cluster.Task
}

var members = []string{"mongo1", "mongo2", "mongo3", "arbiter"}

// initiated waits until the init service is complete. Each member must have answered under its name.
func (m *mongodb) initiated(how string) {
	m.c.Eventually("the set is initiated", func() error {
		tasks, err := m.stack.Tasks("init")
		if err != nil {
			return err
		}
		if len(tasks) == 0 || tasks[0].Status.State != "complete" {
			return fmt.Errorf("the init service has not completed: %+v", tasks)
		}
		out, err := tasks[0].Node.TryDocker("logs", tasks[0].Container)
		if err == nil && !strings.Contains(out, "4 members; the set is "+how) {
			err = errors.New(out)
		}
		return err
	})
}

func (m *mongodb) begin() {
	m.before = map[string]*cluster.Task{}
	for _, name := range members {
		m.before[name] = m.stack.Task(name, nil)
	}
}

func (m *mongodb) check(t *testing.T, victim *cluster.Node) {
	t.Helper()
	moved := 0
	for _, name := range members {
		task := m.stack.Task(name, victim)
		if m.before[name].Node == victim {
			moved++
			assert.Regexp(t, name+" found its own data of [1-9]", task.Node.Docker("logs", task.Container))
		} else {
			assert.Equal(t, m.before[name].ID, task.ID, "%s must not move", name)
		}
	}
	require.NotZero(t, moved, "no member was on %s", victim.Name)
	m.c.Manager().Docker("service", "update", "--detach", "--force", "--no-resolve-image", "db_init")
	m.initiated("known")
	t.Logf("fakemongo: %d of 4 members have moved; all find each other", moved)
}

type sessions struct {
	c     *cluster.Cluster
	stack *cluster.Stack
	nodes map[string]*cluster.Node
}

// begin gives each replica a name and waits until it is on its disk.
func (s *sessions) begin() {
	s.nodes = map[string]*cluster.Node{}
	for _, slot := range []string{"sessions.1", "sessions.2", "sessions.3"} {
		task := s.stack.Task(slot, nil)
		s.nodes[slot] = task.Node
		s.c.Eventually("the name is on the disk", func() error {
			out, err := task.TryExec("sh", "-c", "printf 'set name "+slot+"\nwaitaof 1 0 5000\n' | redis-cli")
			if err == nil && !strings.HasPrefix(out, "OK\n1\n") {
				err = errors.New(out)
			}
			return err
		})
	}
}

func (s *sessions) check(t *testing.T, victim *cluster.Node) {
	t.Helper()
	moved := 0
	for slot, node := range s.nodes {
		task := s.stack.Task(slot, victim)
		if node == victim {
			moved++
		}
		s.c.Eventually("the replica has its own disk", func() error {
			out, err := task.TryExec("redis-cli", "get", "name")
			if err == nil && out != slot {
				err = errors.New(out)
			}
			return err
		})
	}
	require.NotZero(t, moved, "no replica was on %s", victim.Name)
	var names []string
	for _, v := range s.c.Cloud.Volumes() {
		if name := v.Tags["blockvol:name"]; strings.HasPrefix(name, "data-web_sessions-") {
			names = append(names, name)
			assert.Equal(t, cloud.InUse, v.State, name)
		}
	}
	assert.ElementsMatch(t, []string{"data-web_sessions-1", "data-web_sessions-2", "data-web_sessions-3"}, names)
}
