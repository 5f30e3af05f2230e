package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/cluster/agent"
	"github.com/blockvol/blockvol/test/cluster/image"
	"github.com/blockvol/blockvol/test/cluster/qemu"
)

// Node is a machine of the cluster and an instance of the cloud.
type Node struct {
	Name     string
	Address  string
	Instance string

	c       *Cluster
	dir     string
	root    string // its root disk
	tap     string
	manager bool
	cut     bool // cut off from other nodes

	switching sync.Mutex // held while the machine is switched on or off

	mu      sync.Mutex
	machine *qemu.Machine // nil while it is off
	guest   *agent.Client
	frozen  bool
}

// newNode adds a machine to the network and an instance to the cloud.
func (c *Cluster) newNode() *Node {
	c.t.Helper()
	c.mu.Lock()
	c.made++
	number := c.made
	c.mu.Unlock()
	n := &Node{c: c, Name: "node" + strconv.Itoa(number), Address: address(number), tap: "tap" + strconv.Itoa(number)}
	n.dir = filepath.Join(c.dir, n.Name)
	n.root = filepath.Join(n.dir, "root.qcow2")
	if err := c.network.connect(n.tap, n.Address); err != nil {
		c.t.Fatalf("cluster: %v", err)
	}
	instance := c.cfg.Kind.Instance
	instance.Address = n.Address
	n.Instance = c.Cloud.AddInstance(instance).ID
	service := c.Front.Metadata(n.Instance)
	c.mu.Lock()
	c.metadata[n.Address], c.instances[n.Instance] = service, n
	c.mu.Unlock()
	return n
}

// launch starts the node from the image's snapshot and sets its identity.
func (n *Node) launch() error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "--sparse=always", n.c.image.Root, n.root).CombinedOutput(); err != nil {
		return fmt.Errorf("copying the image: %w: %s", err, out)
	}
	if err := n.power(image.Snapshot); err != nil {
		return err
	}
	seed := make([]byte, 64)
	if _, err := rand.Read(seed); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := n.guest.Run(ctx, seed, "agent", "seed"); err != nil {
		return err
	}
	if err := setClock(ctx, n.guest); err != nil {
		return err
	}
	if _, err := n.guest.Run(ctx, nil, "/etc/guest/identity", n.Name, n.Address, router); err != nil {
		return err
	}
	_, err := n.guest.Run(ctx, nil, "busybox", "wget", "-q", "-O", "/usr/local/bin/writer", "http://"+observer+"/writer")
	if err == nil {
		_, err = n.guest.Run(ctx, nil, "chmod", "+x", "/usr/local/bin/writer")
	}
	return err
}

func setClock(ctx context.Context, guest *agent.Client) error {
	_, err := guest.Run(ctx, nil, "date", "--set", fmt.Sprintf("@%.3f", float64(time.Now().UnixMilli())/1000))
	return err
}

// power starts the machine and waits for its agent.
func (n *Node) power(snapshot string) error {
	n.switching.Lock()
	defer n.switching.Unlock()
	m, err := qemu.Start(qemu.RunnerFunc(n.c.namespaces.Enter), n.c.image.Machine(n.dir, n.root, snapshot, n.tap))
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	guest, err := agent.Dial(m.Agent())
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	n.mu.Lock()
	n.machine, n.guest, n.frozen = m, guest, false
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := guest.Await(ctx); err != nil {
		return fmt.Errorf("%s: %w\n%s", n.Name, err, m.Console())
	}
	n.c.storage.Register(n.Instance, m, qemu.Guest{
		Busy: func(ctx context.Context, serial string) (bool, error) {
			state, err := guest.Run(ctx, nil, "agent", "disk", serial)
			return state == "held", err
		},
		Present: func(ctx context.Context, serial string) (bool, error) {
			state, err := guest.Run(ctx, nil, "agent", "disk", serial)
			return state != "absent", err
		},
	})
	return nil
}

// On reports whether the machine is on.
func (n *Node) On() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machine != nil
}

func (n *Node) reachable() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machine != nil && !n.frozen
}

// Run runs a program on the node through the agent and returns its output without the final newline.
func (n *Node) Run(args ...string) string {
	n.c.t.Helper()
	out, err := n.Try(args...)
	if err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	return out
}

// Try is Run, but returns an error, which contains the program's standard error.
func (n *Node) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errors.New("the node does not answer"))
	defer cancel()
	n.mu.Lock()
	guest := n.guest
	n.mu.Unlock()
	if guest == nil {
		return "", errors.New("the node is off")
	}
	return guest.Run(ctx, nil, args...)
}

// Docker runs the docker client against the node's engine.
func (n *Node) Docker(args ...string) string {
	n.c.t.Helper()
	out, err := n.TryDocker(args...)
	if err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	return out
}

// TryDocker is Docker, but returns an error, which contains the client's standard error.
func (n *Node) TryDocker(args ...string) (string, error) {
	return n.docker(nil, args...)
}

func (n *Node) docker(stdin []byte, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errors.New("timeout"))
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := n.client(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := n.c.namespaces.Enter(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

func (n *Node) client(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=tcp://"+n.Address+":2375", "DOCKER_CONTEXT=", "DOCKER_CONFIG="+filepath.Join(n.c.dir, "client"))
	return cmd
}

// installPlugins installs the cluster's plugins as an operator does.
func (n *Node) installPlugins() error {
	if n.c.cfg.Bare {
		return nil
	}
	begin := time.Now()
	for _, p := range n.c.cfg.Plugins {
		if _, err := n.Try("mkdir", "-p", stateDir(p.Alias), volumesDir(p.Alias)); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		args := []string{
			"plugin", "install", "--grant-all-permissions", "--alias", p.Alias, registry + ":5000/blockvol:1",
			"PROVIDER=" + n.c.cfg.Kind.Provider, "state.source=" + stateDir(p.Alias), "volumes.source=" + volumesDir(p.Alias), "LOG_LEVEL=debug", "CLUSTER=" + p.Cluster,
		}
		if _, err := n.TryDocker(slices.Concat(args, n.c.cfg.Kind.Settings(n.c.Front, n.Instance, "http://"+api, "http://"+metadata), p.Settings)...); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		n.c.logf("%s has plugin %s after %v", n.Name, p.Alias, time.Since(begin).Round(100*time.Millisecond))
	}
	return nil
}

// SaveLogs copies each node's engine log, which includes the plugin's, and its console to a directory.
func (c *Cluster) SaveLogs(dir string) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Logf("%v", err)
		return
	}
	for _, n := range c.Nodes {
		if !n.reachable() {
			continue
		}
		if err := n.saveLogs(dir); err != nil {
			c.t.Logf("the logs of %s: %v", n.Name, err)
		}
	}
}

// saveLogs adds the processors' stacks to the console of a node that does not answer, since nothing else is available.
func (n *Node) saveLogs(dir string) error {
	const soon = 20 * time.Second
	ctx, cancel := context.WithTimeoutCause(context.Background(), soon, errors.New("the node does not answer"))
	defer cancel()
	n.mu.Lock()
	machine, guest := n.machine, n.guest
	n.mu.Unlock()
	log, err := guest.Run(ctx, nil, "cat", "/var/log/dockerd.log")
	console := machine.Console()
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		registers, unknown := machine.Monitor().Human(ctx, "info registers -a")
		err = errors.Join(err, unknown)
		console += registers + "\n"
	}
	return errors.Join(err,
		os.WriteFile(filepath.Join(dir, n.Name+".log"), []byte(log), 0o644),
		os.WriteFile(filepath.Join(dir, n.Name+".console"), []byte(console), 0o644))
}

func stateDir(alias string) string   { return "/var/lib/blockvol/" + alias + "/state" }
func volumesDir(alias string) string { return "/var/lib/blockvol/" + alias + "/volumes" }

// Configure changes settings of a plugin, NAME=VALUE, while containers may use its volumes.
func (n *Node) Configure(alias string, settings ...string) {
	n.c.t.Helper()
	n.Docker("plugin", "disable", "--force", alias)
	n.Docker(append([]string{"plugin", "set", alias}, settings...)...)
	n.Docker("plugin", "enable", alias)
}

// Met waits until a plugin of this node has heard of all other nodes.
func (n *Node) Met(alias string) {
	n.c.t.Helper()
	n.c.Eventually(n.Name+" has heard of all others", func() error {
		text, err := n.Try("sh", "-c", "cat "+stateDir(alias)+"/peers.json 2>/dev/null; true")
		if err != nil {
			return err
		}
		for _, other := range n.c.Nodes {
			if other != n && !strings.Contains(text, `"`+other.Instance+`"`) {
				return fmt.Errorf("not of %s: %s", other.Name, text)
			}
		}
		return nil
	})
}

// UpgradePlugin upgrades a plugin while containers use its volumes, as an operator does, and returns the running version.
func (n *Node) UpgradePlugin(alias, reference string) (version string) {
	n.c.t.Helper()
	n.Docker("plugin", "disable", "--force", alias)
	n.Docker("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", alias, reference)
	n.Docker("plugin", "set", alias, "state.source="+stateDir(alias), "volumes.source="+volumesDir(alias))
	n.Docker("plugin", "enable", alias)
	id := n.Docker("plugin", "inspect", "--format", "{{.Id}}", alias)
	return n.Run("sh", "-ec", `
		for pid in $(pgrep -x blockvol); do
			! grep -q "$0" "/proc/$pid/cgroup" || cat "/proc/$pid/root/version"
		done`, id)
}
