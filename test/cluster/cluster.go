// Package cluster runs a Swarm of virtual machines in a simulated cloud.
//
// Its engines have kernels of their own and hot-plugged disks. Tests can cause power loss, freezes, partitions and cloud
// outages.
//
// The machines are in a network namespace of the test whose only other hosts are the cloud's: EC2 and the metadata service have
// their usual addresses. Everything ends with the test's process.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cluster/image"
	"github.com/blockvol/blockvol/test/cluster/ledger"
	"github.com/blockvol/blockvol/test/cluster/qemu"
	"github.com/blockvol/blockvol/test/namespace"
)

// patience limits every wait. It is long because only a broken test reaches it.
const patience = 5 * time.Minute

// T is the part of testing.T that a cluster uses.
type T = namespace.T

// Config configures a cluster.
type Config struct {
	Nodes   int          // 0 is three; the first is the only manager, see Promote
	Kind    fronts.Kind  // cloud; the zero value is EC2 with the policy in docs/
	Cloud   cloud.Config // Backend, Machines, Zones and ID are set by Start
	Plugins []Plugin     // on every node; empty is one without settings
	Bare    bool         // the plugins are not installed: the test does it
	Dir     string       // output of `make plugin`
	Log     func(format string, args ...any)
}

// Plugin is an installation of blockvol. Several with different cluster names test one failure with several settings at once.
type Plugin struct {
	Alias    string   // name of the volume driver; "" is "blockvol"
	Cluster  string   // setting CLUSTER; "" is "default"
	Settings []string // NAME=VALUE
}

// Cluster is a Swarm of virtual machines.
type Cluster struct {
	Cloud  *cloud.Cloud
	Front  fronts.Front
	Ledger *ledger.Collector
	Nodes  []*Node

	t          T
	cfg        Config
	dir        string
	files      string // directory that nodes download from the observer
	image      *image.Image
	namespaces *namespace.Set
	network    *network
	storage    *qemu.Storage
	registry   *registryServer
	version    int // latest version of the plugin
	servers    []*http.Server
	serving    errgroup.Group

	mu         sync.Mutex
	metadata   map[string]http.Handler // by the caller's address
	token      string                  // join token for workers
	made       int                     // number of nodes created so far
	instances  map[string]*Node        // by instance
	poweredOff []string                // instances
}

// Start returns a Swarm whose nodes have the plugins. It is removed when the test ends.
func Start(t T, cfg Config) *Cluster {
	t.Helper()
	if cfg.Nodes == 0 {
		cfg.Nodes = 3
	}
	if len(cfg.Plugins) == 0 {
		cfg.Plugins = []Plugin{{}}
	}
	for i := range cfg.Plugins {
		if cfg.Plugins[i].Alias == "" {
			cfg.Plugins[i].Alias = "blockvol"
		}
		if cfg.Plugins[i].Cluster == "" {
			cfg.Plugins[i].Cluster = "default"
		}
	}
	var err error
	if cfg.Kind.New == nil {
		if cfg.Kind, err = cfg.usual(); err != nil {
			t.Fatalf("cluster: %v", err)
		}
	}
	cfg.Cloud.Zones, cfg.Cloud.ID = cfg.Kind.Cloud.Zones, cfg.Kind.Cloud.ID
	c := &Cluster{t: t, cfg: cfg, metadata: map[string]http.Handler{}, instances: map[string]*Node{}, registry: newRegistry()}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if c.image, err = image.Get(ctx, t); err != nil {
		t.Fatalf("cluster: %v", err)
	}
	t.Cleanup(c.image.Release)
	c.dir = namespace.Dir(t)
	c.files = filepath.Join(c.dir, "files")
	if err := buildWriter(ctx, c.files); err != nil {
		t.Fatalf("cluster: %v", err)
	}
	if c.namespaces, err = namespace.New(c.dir); err != nil {
		t.Fatalf("cluster: %v", err)
	}
	t.Cleanup(func() {
		if err := c.namespaces.Close(); err != nil {
			t.Fatalf("cluster: %v", err)
		}
	})
	if c.network, err = newNetwork(c.namespaces); err != nil {
		t.Fatalf("cluster: making the network: %v", err)
	}
	if c.storage, err = qemu.NewStorage(qemu.RunnerFunc(c.namespaces.Enter), filepath.Join(c.dir, "storage"), c.model()); err != nil {
		t.Fatalf("cluster: %v", err)
	}
	t.Cleanup(func() {
		if err := c.storage.Close(); err != nil {
			t.Fatalf("cluster: %v", err)
		}
	})
	c.startCloud()
	c.PushPlugin()
	begin := time.Now()
	var launching errgroup.Group
	for range cfg.Nodes {
		n := c.newNode()
		c.Nodes = append(c.Nodes, n)
		launching.Go(n.launch)
	}
	if err := launching.Wait(); err != nil {
		t.Fatalf("cluster: %v", err)
	}
	c.logf("machines are up after %v", time.Since(begin).Round(100*time.Millisecond))
	c.makeSwarm()
	c.logf("the Swarm is ready after %v", time.Since(begin).Round(100*time.Millisecond))
	return c
}

// usual returns EC2 with the policies in docs/ for the clusters of the plugins.
func (cfg *Config) usual() (fronts.Kind, error) {
	type document struct {
		Version   any
		Statement []any
	}
	var whole document
	for _, name := range []string{"aws-policy.json", "aws-fence-policy.json"} {
		text, err := os.ReadFile(filepath.Join(cfg.Dir, "../../docs", name))
		if err != nil {
			return fronts.Kind{}, err
		}
		var policy document
		if err := json.Unmarshal(text, &policy); err != nil {
			return fronts.Kind{}, fmt.Errorf("%s: %w", name, err)
		}
		whole = document{policy.Version, append(whole.Statement, policy.Statement...)}
	}
	policy, err := json.Marshal(whole)
	if err != nil {
		return fronts.Kind{}, err
	}
	var clusters []string
	for _, p := range cfg.Plugins {
		clusters = append(clusters, strconv.Quote(p.Cluster))
	}
	kind := fronts.EC2(bytes.ReplaceAll(policy, []byte(`"default"`), []byte("["+strings.Join(clusters, ",")+"]")))
	kind.Instance.Tags = map[string]string{"blockvol:cluster": cfg.Plugins[0].Cluster} // any of them may power it off
	return kind, nil
}

// model returns how the cloud's disks appear in its machines.
func (c *Cluster) model() qemu.Model {
	kind := c.cfg.Kind
	bus := map[fronts.Bus]qemu.Bus{fronts.NVMe: qemu.NVMe, fronts.SCSI: qemu.SCSI, fronts.Virtio: qemu.Virtio}[kind.Bus]
	return qemu.Model{Bus: bus, Vendor: kind.Vendor, Product: kind.Product, Serial: func(disk string) string { return kind.Serial(c.Front, disk) }}
}

// serial returns the serial that a kernel shows for a volume.
func (c *Cluster) serial(volume string) string {
	serial := c.cfg.Kind.Serial(c.Front, volume)
	if c.cfg.Kind.Bus == fronts.Virtio {
		serial = serial[:min(len(serial), 20)]
	}
	return serial
}

// startCloud starts the API and the metadata services.
func (c *Cluster) startCloud() {
	c.t.Helper()
	c.cfg.Cloud.Backend, c.cfg.Cloud.Machines = c.storage, machines{c}
	c.Cloud = cloud.New(c.cfg.Cloud)
	c.t.Cleanup(func() {
		c.Cloud.Close()
		for _, problem := range c.Cloud.Problems() {
			c.t.Fatalf("the simulated cloud: %v", problem)
		}
	})
	c.Front = c.cfg.Kind.New(c.Cloud)
	c.Ledger = ledger.Collect(c.listen(observer + ":7000"))
	c.t.Cleanup(func() {
		c.Ledger.Close()
		c.NoViolations() // even if something else has failed
	})
	c.serve(api+":80", c.Front)
	c.serve(registry+":5000", c.registry)
	c.serve(observer+":80", http.FileServer(http.Dir(c.files)))
	c.serve(metadata+":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		c.mu.Lock()
		service := c.metadata[host]
		c.mu.Unlock()
		if service == nil {
			panic(http.ErrAbortHandler)
		}
		service.ServeHTTP(w, r)
	}))
	c.t.Cleanup(func() {
		for _, server := range c.servers {
			server.Close() //nolint:errcheck // no data is lost
		}
		c.serving.Wait() //nolint:errcheck // they return when they are closed
	})
}

func (c *Cluster) listen(address string) net.Listener {
	c.t.Helper()
	listener, err := c.namespaces.Listen(address)
	if err != nil {
		c.t.Fatalf("cluster: listening on %s: %v", address, err)
	}
	return listener
}

func (c *Cluster) serve(address string, handler http.Handler) {
	c.t.Helper()
	listener := c.listen(address)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(os.Stderr, "", 0)}
	c.servers = append(c.servers, server)
	c.serving.Go(func() error { return server.Serve(listener) })
}

// buildWriter builds the ledger's writer.
func buildWriter(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(dir, "writer"),
		"github.com/blockvol/blockvol/test/cluster/ledger/cmd/writer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the writer: %w: %s", err, out)
	}
	return nil
}

// makeSwarm joins all nodes in a Swarm, after installing the plugins: a node reports its plugins when it joins, and later every
// 20 s only.
func (c *Cluster) makeSwarm() {
	c.t.Helper()
	var installing errgroup.Group
	for _, n := range c.Nodes {
		installing.Go(n.installPlugins)
	}
	if err := installing.Wait(); err != nil {
		c.t.Fatalf("cluster: %v", err)
	}
	c.logf("plugins are installed")
	first := c.Nodes[0]
	first.Docker("swarm", "init", "--advertise-addr", first.Address, "--task-history-limit", "20")
	c.token = first.Docker("swarm", "join-token", "--quiet", "worker")
	first.manager = true
	var joining errgroup.Group
	for _, n := range c.Nodes[1:] {
		joining.Go(func() error {
			_, err := n.TryDocker("swarm", "join", "--token", c.token, first.Address)
			return err
		})
	}
	if err := joining.Wait(); err != nil {
		c.t.Fatalf("cluster: %v", err)
	}
	if !c.cfg.Bare {
		c.Settle()
	}
}

// Settle waits until all nodes are ready and the Swarm knows their plugins.
func (c *Cluster) Settle() {
	c.t.Helper()
	c.Eventually("the Swarm knows of the plugins", c.pluginsKnown)
}

// PushPlugin makes a new version of the plugin available and returns its reference. Only the version differs.
func (c *Cluster) PushPlugin() (reference string) {
	c.t.Helper()
	c.version++
	tag := strconv.Itoa(c.version)
	if err := c.registry.pushPlugin(c.cfg.Dir, tag); err != nil {
		c.t.Fatalf("cluster: %v", err)
	}
	return registry + ":5000/blockvol:" + tag
}

// PushInstaller makes a new version of the plugin available, and the image of its installer, and returns the version.
func (c *Cluster) PushInstaller() (version string) {
	c.t.Helper()
	c.PushPlugin()
	version = strconv.Itoa(c.version)
	dir := filepath.Join(c.dir, "installer")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(dir, "installer"), "github.com/blockvol/blockvol/cmd/installer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err == nil {
		err = c.registry.pushPlugin(c.cfg.Dir, version+"-amd64")
	}
	if err == nil {
		err = c.registry.pushImage(dir, "blockvol-installer:"+version, "/installer")
	}
	if err != nil {
		c.t.Fatalf("cluster: %v: %s", err, out)
	}
	return version
}

// What the nodes reach.
const (
	Registry = registry + ":5000" // has the plugins
	API      = api                // of the cloud
	Metadata = metadata           // its metadata service
)

// pluginsKnown returns an error until the Swarm knows the plugins of its nodes. The scheduler uses only known plugins.
func (c *Cluster) pluginsKnown() error {
	for _, n := range c.Nodes {
		if !n.On() {
			continue
		}
		plugins, err := c.Manager().TryDocker("node", "inspect", "--format", "{{range .Description.Engine.Plugins}}{{.Name}} {{end}}{{.Status.State}}", n.Name)
		if err != nil {
			return err
		}
		for _, plugin := range c.cfg.Plugins {
			if !strings.Contains(plugins, plugin.Alias+":latest") || !strings.HasSuffix(plugins, " ready") {
				return fmt.Errorf("%s has %s", n.Name, plugins)
			}
		}
	}
	return nil
}

// Manager returns a manager, if possible one that is not cut off.
func (c *Cluster) Manager() *Node {
	c.t.Helper()
	var found *Node
	for _, n := range c.Nodes {
		if n.manager && n.reachable() && (found == nil || found.cut && !n.cut) {
			found = n
		}
	}
	if found == nil {
		c.t.Fatalf("cluster: no manager is on")
	}
	return found
}

// Leader returns the Swarm's leader.
func (c *Cluster) Leader() *Node {
	c.t.Helper()
	var leader *Node
	c.Eventually("there is a leader", func() error {
		managers, err := c.Manager().TryDocker("node", "ls", "--filter", "role=manager", "--format", "{{.ManagerStatus}} {{.Hostname}}")
		if err != nil {
			return err
		}
		for line := range strings.Lines(managers) {
			if name, is := strings.CutPrefix(strings.TrimSpace(line), "Leader "); is {
				leader = c.Node(name)
				return nil
			}
		}
		return errors.New(managers)
	})
	return leader
}

// Promote makes nodes managers, one after the other.
func (c *Cluster) Promote(nodes ...*Node) {
	c.t.Helper()
	for _, n := range nodes {
		c.change("node", "promote", n.Name)
		c.Eventually(n.Name+" is a manager", func() error {
			_, err := n.TryDocker("node", "ls")
			return err
		})
		n.manager = true
	}
}

// Demote makes managers workers, one after the other.
func (c *Cluster) Demote(nodes ...*Node) {
	c.t.Helper()
	for _, n := range nodes {
		n.manager = false
		c.change("node", "demote", n.Name)
		c.Eventually(n.Name+" is a worker", func() error {
			control, err := n.TryDocker("info", "--format", "{{.Swarm.ControlAvailable}}")
			if err == nil && control != "false" {
				err = errNotYet
			}
			return err
		})
	}
}

// Node returns the node with this name.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("cluster: no such node: %q", name)
	return nil
}

// Eventually waits until check returns nil.
func (c *Cluster) Eventually(what string, check func() error) {
	c.t.Helper()
	c.eventually(what, func() string { return "" }, check)
}

// eventually is Eventually with more text for a failure.
func (c *Cluster) eventually(what string, more func() string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("timeout after %v: %s: %v\n%s", patience, what, err, more())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// logf writes to the test's log.
func (c *Cluster) logf(format string, args ...any) {
	if c.cfg.Log != nil {
		c.cfg.Log(format, args...)
	}
}

var errNotYet = errors.New("not yet")

func address(number int) string { return "172.31.0." + strconv.Itoa(10+number) }
