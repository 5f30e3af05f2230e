package cluster_test

import (
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/standalone"
)

// The tests share one cluster, since its start takes most of a minute, and run sequentially. Each leaves all nodes running and
// empty.

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() { // a node that one policy powers off is off for all of them, so each such failure is two
		policies = unfenced
	}
	cloudtest.Unsetenv("AWS_")
	// Ctrl-C ends the tests, and with them all programs that they have started.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() { <-stop; os.Exit(1) }()
	status := m.Run()
	if !outer.End() {
		status = 1
	}
	os.Exit(status)
}

// logs is the directory for the logs after a failure.
const logs = "../../build/cluster"

// outer is the testing.T of the shared cluster between tests.
var outer standalone.T

// sharedCluster is the shared cluster.
var sharedCluster *cluster.Cluster

// policies are the plugins on every node: one for each TAKEOVER, so that a failure tests all of them.
var (
	policies = []string{"never", "stopped", "fence", "always"}
	unfenced = []string{"never", "stopped", "always"} // those that do not power off nodes
)

// driverOf returns the volume driver of a policy. The default policy's is the driver in the examples.
func driverOf(policy string) string {
	if policy == "stopped" {
		return "blockvol"
	}
	return policy
}

// times are durations of the simulated cloud, similar to EC2's.
var times = cloud.Times{
	Create: 500 * time.Millisecond, Delete: 500 * time.Millisecond, Attach: 1500 * time.Millisecond, Detach: 2 * time.Second,
	Snapshot: time.Second, Modify: time.Second, Stop: time.Second, Terminate: time.Second,
}

const (
	latency = 50 * time.Millisecond // of each call
	lag     = time.Second           // of reads
)

// firstPeerPort is the port on which the nodes of the first policy ask each other; peerPorts are those of all.
const (
	firstPeerPort = 7373
	peerPorts     = "7373-7376"
)

// peerKeys are those of the nodes, by policy.
var peerKeys = map[string]string{}

func init() {
	for _, policy := range policies {
		peerKeys[policy] = newPeerKey()
	}
}

func newPeerKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	return hex.EncodeToString(key)
}

// long skips a test in `make test`, which would take too long with it.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("only in make test-cluster")
	}
}

// shared returns the cluster with all nodes running. Failures belong to t from now on.
func shared(t *testing.T) *cluster.Cluster {
	t.Helper()
	if sharedCluster == nil {
		if outer.Failed() {
			t.Fatal("the cluster has failed")
		}
		cfg := cluster.Config{
			Dir: "../../build/plugin", Log: outer.Logf,
			Cloud: cloud.Config{Latency: latency, Times: times, Lag: lag, Trace: trace.note},
		}
		for i, policy := range policies {
			// Plugins share their node's network, so each policy has a port, and a key, of its own.
			settings := []string{"TAKEOVER=" + policy, fmt.Sprintf("PEER_LISTEN=:%d", firstPeerPort+i), "PEER_KEY=" + peerKeys[policy]}
			if policy == "fence" {
				settings = append(settings, "FENCE="+map[bool]string{false: "poweroff", true: "reboot"}[*soakFor > 0])
			} else if policy != "stopped" || testing.Short() { // the default is tested without it if there is time
				settings = append(settings, "CALL_TIMEOUT=10s") // so that refusals come soon
			}
			cfg.Plugins = append(cfg.Plugins, cluster.Plugin{Alias: driverOf(policy), Cluster: policy, Settings: settings})
		}
		if !outer.Try(func() { sharedCluster = cluster.Start(&outer, cfg) }) {
			t.Fatal("the cluster does not start")
		}
	}
	sharedCluster.Use(t)
	t.Cleanup(func() {
		if t.Failed() {
			sharedCluster.SaveLogs(logs)
			t.Logf("the engines' logs are in %s", logs)
		}
		sharedCluster.Use(&outer)
	})
	return sharedCluster
}
