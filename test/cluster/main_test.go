package cluster_test

import (
	"flag"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/standalone"
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
	if !outer.End() {
		status = 1
	}
	os.Exit(status)
}

// logs is where the logs of a failure are kept.
const logs = "../../build/cluster"

// outer stands in for a test around all tests.
var outer standalone.T

// whole is the cluster that they share.
var whole *cluster.Cluster

// policies are the plugins on every node: one for each TAKEOVER, so that one failure meets all three.
var policies = []string{"never", "stopped", "always"}

// driverOf is the name of a policy's volume driver. The default policy's is the one that the files in examples/ ask for.
func driverOf(policy string) string {
	if policy == "stopped" {
		return "blockvol"
	}
	return policy
}

// times are what the simulated cloud takes, in the order of what EC2 does.
var times = cloud.Times{
	Create: 500 * time.Millisecond, Delete: 500 * time.Millisecond, Attach: 1500 * time.Millisecond, Detach: 2 * time.Second,
	Snapshot: time.Second, Modify: time.Second, Stop: time.Second, Terminate: time.Second,
}

const (
	latency = 50 * time.Millisecond // of each call
	lag     = time.Second           // of what is read
)

// long marks a test that is for `make test-cluster`: with it, `make test` would take more than its 40 minutes.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("make test-cluster runs it")
	}
}

// shared returns the cluster, all of whose nodes are well. What fails from now on is this test's failure.
func shared(t *testing.T) *cluster.Cluster {
	t.Helper()
	if whole == nil {
		if outer.Failed() {
			t.Fatal("there is no cluster")
		}
		cfg := cluster.Config{
			Dir: "../../build/plugin", Log: outer.Logf,
			Cloud: cloud.Config{Latency: latency, Times: times, Lag: lag, Trace: trace.note},
		}
		for _, policy := range policies {
			settings := []string{"TAKEOVER=" + policy}
			if policy != "stopped" || testing.Short() { // which is to be as operators have it, if there is time
				settings = append(settings, "CALL_TIMEOUT=10s") // so that what is refused is told soon
			}
			cfg.Plugins = append(cfg.Plugins, cluster.Plugin{Alias: driverOf(policy), Cluster: policy, Settings: settings})
		}
		if !outer.Try(func() { whole = cluster.Start(&outer, cfg) }) {
			t.Fatal("the cluster does not start")
		}
	}
	whole.Use(t)
	t.Cleanup(func() {
		if t.Failed() {
			whole.SaveLogs(logs)
			t.Logf("the engines' logs are in %s", logs)
		}
		whole.Use(&outer)
	})
	return whole
}
