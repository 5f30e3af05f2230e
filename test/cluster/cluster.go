// Package cluster gives a test a Swarm of virtual machines in a simulated cloud: real engines with kernels of their own, disks
// that are plugged into them and pulled out, and failures as operators meet them: power loss, freezing, partitions, a cloud
// that does not answer.
//
// The machines are in a network namespace of the test's own, with the cloud as their only neighbour: EC2 and the metadata
// service answer where a guest expects them. All that a cluster starts dies with the test, however that ends.
package cluster

import (
	"bytes"
	"context"
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

// patience bounds every wait. It is long because it only decides how soon a broken test is given up.
const patience = 5 * time.Minute

// T is what a cluster needs of a test.
type T = namespace.T

// Config is what a cluster is like.
type Config struct {
	Nodes   int          // three, if 0; the first is the only manager, see Promote
	Kind    fronts.Kind  // of the cloud; EC2 with the policy that docs/ gives, if zero
	Cloud   cloud.Config // Backend, Zones and ID are not the test's
	Plugins []Plugin     // on every node; one of no settings, if empty
	Dir     string       // what `make plugin` built
	Log     func(format string, args ...any)
}

// A Plugin is one installation of blockvol. Several, each with a cluster name of its own, let one failure meet several
// settings at a time.
type Plugin struct {
	Alias    string   // the volume driver's name; "blockvol", if empty
	Cluster  string   // whose volumes it sees; "default", if empty
	Settings []string // NAME=VALUE
}

// Cluster is a Swarm of machines.
type Cluster struct {
	Cloud  *cloud.Cloud
	Front  fronts.Front
	Ledger *ledger.Collector
	Nodes  []*Node

	t          T
	cfg        Config
	dir        string
	files      string // that nodes fetch from the observer
	image      *image.Image
	namespaces *namespace.Set
	network    *network
	storage    *qemu.Storage
	registry   *pluginRegistry
	version    int // of the plugin, the latest
	servers    []*http.Server
	serving    errgroup.Group

	mu       sync.Mutex
	metadata map[string]http.Handler // by address of the asker
	token    string                  // for workers to join
	made     int                     // how many nodes there have ever been
}

// Start returns a Swarm whose nodes have the plugins. It is gone when the test ends.
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
	c := &Cluster{t: t, cfg: cfg, metadata: map[string]http.Handler{}, registry: newRegistry()}
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

// usual is EC2 with the policy that docs/ gives, for the clusters that there are plugins of.
func (cfg *Config) usual() (fronts.Kind, error) {
	policy, err := os.ReadFile(filepath.Join(cfg.Dir, "../../docs/aws-policy.json"))
	if err != nil {
		return fronts.Kind{}, err
	}
	var clusters []string
	for _, p := range cfg.Plugins {
		clusters = append(clusters, strconv.Quote(p.Cluster))
	}
	return fronts.EC2(bytes.ReplaceAll(policy, []byte(`"default"`), []byte("["+strings.Join(clusters, ", ")+"]"))), nil
}

// model is how the disks of the cloud look in its machines.
func (c *Cluster) model() qemu.Model {
	kind := c.cfg.Kind
	bus := map[fronts.Bus]qemu.Bus{fronts.NVMe: qemu.NVMe, fronts.SCSI: qemu.SCSI, fronts.Virtio: qemu.Virtio}[kind.Bus]
	return qemu.Model{Bus: bus, Vendor: kind.Vendor, Product: kind.Product, Serial: func(disk string) string { return kind.Serial(c.Front, disk) }}
}

// serial is what a kernel shows of a volume's disk.
func (c *Cluster) serial(volume string) string {
	serial := c.cfg.Kind.Serial(c.Front, volume)
	if c.cfg.Kind.Bus == fronts.Virtio {
		serial = serial[:min(len(serial), 20)]
	}
	return serial
}

// startCloud starts what answers the nodes.
func (c *Cluster) startCloud() {
	c.t.Helper()
	c.cfg.Cloud.Backend = c.storage
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
		c.NoViolations() // whatever else has failed
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
			server.Close() //nolint:errcheck // nothing is kept
		}
		c.serving.Wait() //nolint:errcheck // they end when they are closed
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

// buildWriter builds the program that writes acknowledged records.
func buildWriter(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(dir, "writer"),
		"github.com/blockvol/blockvol/test/cluster/ledger/cmd/writer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the writer: %w: %s", err, out)
	}
	return nil
}

// makeSwarm makes all nodes one Swarm, with the plugins. A node tells the Swarm what it has when it joins, and later each 20 s
// only: so the plugins come first.
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
	c.Eventually("the Swarm knows of the plugins", c.pluginsKnown)
}

// Settle waits until the Swarm calls all nodes ready, and knows of their plugins.
func (c *Cluster) Settle() {
	c.t.Helper()
	c.Eventually("the Swarm knows of the plugins", c.pluginsKnown)
}

// PushPlugin makes a new version of the plugin available, and returns its reference. Only its number is new.
func (c *Cluster) PushPlugin() (reference string) {
	c.t.Helper()
	c.version++
	tag := strconv.Itoa(c.version)
	if err := c.registry.push(c.cfg.Dir, tag); err != nil {
		c.t.Fatalf("cluster: %v", err)
	}
	return registry + ":5000/blockvol:" + tag
}

// pluginsKnown asks the Swarm which plugins its nodes have: the scheduler takes only those.
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

// Manager is a node that can be asked about the Swarm: if it can be helped, one that is not cut off from the others.
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

// Leader is the manager that decides.
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

// Node returns a node by its name.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("cluster: there is no node %q", name)
	return nil
}

// Eventually waits until check returns nil.
func (c *Cluster) Eventually(what string, check func() error) {
	c.t.Helper()
	c.eventually(what, func() string { return "" }, check)
}

// eventually is Eventually with more to tell when it gives up.
func (c *Cluster) eventually(what string, more func() string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("still not so after %v: %s: %v\n%s", patience, what, err, more())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Logf writes to the test's log.
func (c *Cluster) logf(format string, args ...any) {
	if c.cfg.Log != nil {
		c.cfg.Log(format, args...)
	}
}

var errNotYet = errors.New("not yet")

func address(number int) string { return "172.31.0." + strconv.Itoa(10+number) }
