// Command demo shows a database that outlives its machine: `make demo-swarm`. Three emulated machines are a Swarm in a simulated
// EC2, PostgreSQL runs on one of them, and that one loses power.
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
	// A Ctrl-C ends this program; what it has started ends with it.
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
	tell("Machines, disks and network are gone again.")
}

func demo(t *standalone.T, tell func(format string, args ...any)) {
	tell("Three emulated machines with 3 GB of memory in all, and a simulated EC2 that has their disks. All is slow but real.")
	c := cluster.Start(t, cluster.Config{Dir: plugin, Log: tell, Cloud: cloud.Config{
		Latency: 50 * time.Millisecond,
		Times:   cloud.Times{Create: 500 * time.Millisecond, Attach: 1500 * time.Millisecond, Detach: 2 * time.Second, Stop: time.Second},
	}})
	manager, doomed := c.Nodes[0], c.Nodes[1]

	c.Secret("postgres-password", "demo")
	tell("$ docker stack deploy --compose-file %s shop", example)
	var shop *cluster.Stack
	var task *cluster.Task
	c.Place(doomed, func() { // so that it is not the manager's node that fails, of which a Swarm of three has but one here
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
	tell("It has %s rows, whose checksum is %s.", rows, sum)

	tell("%s loses power.", doomed.Name)
	lost := time.Now()
	since := func() string { return fmt.Sprintf("%.1f s", time.Since(lost).Seconds()) }
	doomed.PowerOff()
	c.Eventually("the Swarm starts another task", func() error {
		tasks, err := shop.Tasks("postgres")
		if err == nil && (len(tasks) < 2 || tasks[0].Node == nil || tasks[0].Node == doomed) {
			err = errors.New("there is none")
		}
		if err == nil {
			tell("After %s the Swarm has given the task to %s.", since(), tasks[0].Node.Name)
		}
		return err
	})
	task = shop.Task("postgres", doomed)
	answers()
	tell("After %s PostgreSQL answers, on %s, %s.", since(), task.Node.Name, disk(t, c))
	after := sql(count)
	rows, sum, _ = strings.Cut(after, "|")
	tell("It has %s rows, whose checksum is %s.", rows, sum)
	if after != before {
		t.Fatalf("demo: these are not the rows that were there before")
	}
}

// disk tells where the disk is.
func disk(t *standalone.T, c *cluster.Cluster) string {
	v, err := c.Volume("shop_data")
	if err != nil || len(v.Attachments) != 1 {
		t.Fatalf("demo: the disk is not where it should be: %+v %v", v, err)
	}
	for _, n := range c.Nodes {
		if n.Instance == v.Attachments[0].Instance {
			return fmt.Sprintf("and its disk %s is attached there: instance %s", v.ID, n.Instance)
		}
	}
	return "and its disk is attached elsewhere"
}
