package cluster_test

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cluster"
)

// The tests share one cluster, since its start takes most of a minute, and run one after another. Each leaves all nodes
// well and nothing on them.

func TestMain(m *testing.M) {
	flag.Parse()
	ec2.ForgetEnvironment()
	// A Ctrl-C ends the tests; what they have started ends with them.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() { <-stop; os.Exit(1) }()
	status := m.Run()
	if !outer.end() {
		status = 1
	}
	os.Exit(status)
}

// logs is where the logs of a failure are kept.
const logs = "../../build/cluster"

// outer stands in for a test around all tests.
var outer outerTest

type outerTest struct {
	failed   bool
	cleanups []func()
	cluster  *cluster.Cluster
}

func (o *outerTest) Helper()          {}
func (o *outerTest) Failed() bool     { return o.failed }
func (o *outerTest) Cleanup(f func()) { o.cleanups = append(o.cleanups, f) }
func (o *outerTest) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (o *outerTest) Fatalf(format string, args ...any) {
	o.Logf(format, args...)
	o.failed = true
	panic(o)
}

func (o *outerTest) end() (well bool) {
	for _, cleanup := range slices.Backward(o.cleanups) {
		func() {
			defer func() {
				if r := recover(); r != nil && r != any(o) {
					panic(r)
				}
			}()
			cleanup()
		}()
	}
	return !o.failed
}

// policies are the plugins on every node: one for each TAKEOVER, so that one failure meets all three. Their names are the
// names of volume drivers.
var policies = []string{"never", "stopped", "always"}

// times are what the simulated cloud takes, in the order of what EC2 does.
var times = cloud.Times{
	Create: 500 * time.Millisecond, Delete: 500 * time.Millisecond, Attach: 1500 * time.Millisecond, Detach: 2 * time.Second,
	Snapshot: time.Second, Modify: time.Second, Stop: time.Second, Terminate: time.Second,
}

// shared returns the cluster, all of whose nodes are well. What fails from now on is this test's failure.
func shared(t *testing.T) *cluster.Cluster {
	t.Helper()
	if outer.cluster == nil {
		if outer.failed {
			t.Fatal("there is no cluster")
		}
		defer func() {
			if r := recover(); r != nil {
				if r != any(&outer) {
					panic(r)
				}
				t.Fatal("the cluster does not start")
			}
		}()
		cfg := cluster.Config{
			Dir: "../../build/plugin", Log: outer.Logf,
			Cloud: cloud.Config{Latency: 50 * time.Millisecond, Times: times, Lag: time.Second},
		}
		for _, policy := range policies {
			// Short, so that what is refused is told soon.
			cfg.Plugins = append(cfg.Plugins, cluster.Plugin{
				Alias: policy, Cluster: policy, Settings: []string{"TAKEOVER=" + policy, "CALL_TIMEOUT=10s"},
			})
		}
		outer.cluster = cluster.Start(&outer, cfg)
	}
	outer.cluster.Use(t)
	t.Cleanup(func() {
		if t.Failed() {
			outer.cluster.SaveLogs(logs)
			t.Logf("the engines' logs are in %s", logs)
		}
		outer.cluster.Use(&outer)
	})
	return outer.cluster
}
