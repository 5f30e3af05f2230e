// Command demo shows that a database survives the power loss of its machine: `make demo-swarm`.
//
// Three emulated machines form a Swarm in a simulated EC2. PostgreSQL runs on one of them, which loses power.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/standalone"
)

const (
	plugin  = "build/plugin"
	example = "examples/postgres.yml"
)

func main() {
	begin := time.Now()
	tell := func(format string, args ...any) {
		fmt.Printf("%6.1f s  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	// Ctrl-C ends this program, and with it all programs that it has started.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-stop
		fmt.Println()
		os.Exit(1)
	}()
	test := standalone.T{Log: tell}
	test.Try(func() { demo(&test, tell) })
	if !test.End() {
		os.Exit(1)
	}
	tell("The machines, disks and network have been removed.")
}

func demo(t *standalone.T, tell func(format string, args ...any)) {
	tell("Starting three emulated machines (3 GB of memory in all) and a simulated EC2 with their disks. Emulation is slow.")
	c := cluster.Start(t, cluster.Config{Dir: plugin, Log: tell, Cloud: cloud.Config{
		Latency: 50 * time.Millisecond,
		Times:   cloud.Times{Create: 500 * time.Millisecond, Attach: 1500 * time.Millisecond, Detach: 2 * time.Second, Stop: time.Second},
	}})
	manager, victim := c.Nodes[0], c.Nodes[1]

	c.Secret("postgres-password", "demo")
	tell("$ docker stack deploy --compose-file %s shop", example)
	var shop *cluster.Stack
	var task *cluster.Task
	c.Place(victim, func() { // the manager must not fail: this Swarm of three has only one
		shop = c.Deploy("shop", example)
		task = shop.Task("postgres", nil)
	})
	answers := func() {
		c.Eventually("PostgreSQL answers", func() error { return c.PostgresAnswers(manager.Address + ":5432") })
	}
	answers()
	tell("PostgreSQL answers. It runs on %s, %s.", task.Node.Name, disk(t, c))

	sql := func(query string) string {
		return task.Exec("psql", "--username=postgres", "--no-align", "--tuples-only", "--quiet", "--command="+query)
	}
	const (
		insert = "create table guests as select n, md5(n::text) as name from generate_series(1, 100000) n"
		count  = "select count(*), md5(string_agg(name, ' ' order by n)) from guests"
	)
	tell("$ psql -c %q", insert)
	sql(insert)
	before := sql(count)
	rows, sum, _ := strings.Cut(before, "|")
	tell("The table has %s rows with checksum %s.", rows, sum)

	tell("%s loses power.", victim.Name)
	lost := time.Now()
	since := func() string { return fmt.Sprintf("%.1f s", time.Since(lost).Seconds()) }
	victim.PowerOff()
	c.Eventually("the Swarm starts a new task", func() error {
		tasks, err := shop.Tasks("postgres")
		if err == nil && (len(tasks) < 2 || tasks[0].Node == nil || tasks[0].Node == victim) {
			err = errors.New("there is none")
		}
		if err == nil {
			tell("After %s the Swarm has placed the task on %s.", since(), tasks[0].Node.Name)
		}
		return err
	})
	task = shop.Task("postgres", victim)
	answers()
	tell("After %s PostgreSQL answers, on %s, %s.", since(), task.Node.Name, disk(t, c))
	after := sql(count)
	rows, sum, _ = strings.Cut(after, "|")
	tell("The table has %s rows with checksum %s.", rows, sum)
	if after != before {
		t.Fatalf("demo: the rows have changed")
	}
}

// disk returns where the volume is attached.
func disk(t *standalone.T, c *cluster.Cluster) string {
	v, err := c.Volume("shop_data")
	if err != nil || len(v.Attachments) != 1 {
		t.Fatalf("demo: the volume is not attached as expected: %+v %v", v, err)
	}
	for _, n := range c.Nodes {
		if n.Instance == v.Attachments[0].Instance {
			return fmt.Sprintf("and its disk %s is attached there: instance %s", v.ID, n.Instance)
		}
	}
	return "and its disk is attached elsewhere"
}
