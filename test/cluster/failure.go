package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster/agent"
	"github.com/blockvol/blockvol/test/cluster/qemu"
)

// PowerOff cuts the machine's power. The cloud notices and shows the instance as stopped. Data that was not flushed is lost.
func (n *Node) PowerOff() {
	n.c.t.Helper()
	n.fall()
	n.c.Cloud.Stop(n.Instance)
}

// Terminate terminates the instance.
func (n *Node) Terminate() {
	n.c.t.Helper()
	n.fall()
	n.c.Cloud.Terminate(n.Instance)
}

// fall cuts the machine's power without informing the cloud.
func (n *Node) fall() {
	if !n.cutPower() {
		n.c.t.Fatalf("%s is already off", n.Name)
	}
}

// cutPower cuts the machine's power, and tells whether it was on. It returns when the machine has ended.
func (n *Node) cutPower() bool {
	n.switching.Lock()
	defer n.switching.Unlock()
	n.mu.Lock()
	machine, guest := n.machine, n.guest
	n.machine, n.guest, n.frozen = nil, nil, false
	n.mu.Unlock()
	if machine == nil {
		return false
	}
	machine.PowerOff()
	guest.Close() //nolint:errcheck // the connection is broken
	return true
}

// PowerOn starts a stopped instance. It returns when the engine answers.
func (n *Node) PowerOn() {
	n.c.t.Helper()
	if err := n.power(""); err != nil {
		n.c.t.Fatalf("%v", err)
	}
	n.c.Cloud.Start(n.Instance)
	n.awaitEngine()
}

// Reboot reboots the machine cleanly and waits for the engine.
func (n *Node) Reboot() {
	n.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n.mu.Lock()
	guest := n.guest
	n.mu.Unlock()
	before, err := guest.BootID(ctx)
	if err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	if _, err := guest.Run(ctx, nil, "busybox", "reboot"); err != nil && !errors.Is(err, agent.ErrRestarted) {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	n.c.Eventually(n.Name+" has rebooted", func() error {
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		boot, err := guest.BootID(try)
		if err == nil && boot == before {
			err = errNotYet
		}
		return err
	})
	n.awaitEngine()
}

// AwaitOn waits until the cloud has started the machine again and its engine answers.
func (n *Node) AwaitOn() {
	n.c.t.Helper()
	n.c.Eventually(n.Name+" is on", func() error {
		if i, _ := n.c.Cloud.Instance(n.Instance); i.State != cloud.Running || !n.reachable() {
			return fmt.Errorf("the cloud says %s", i.State)
		}
		return nil
	})
	n.awaitEngine()
}

func (n *Node) awaitEngine() {
	n.c.t.Helper()
	n.c.Eventually("the engine of "+n.Name+" answers", func() error {
		_, err := n.TryDocker("version")
		return err
	})
}

// Freeze stops the machine's processors. The cloud still shows it as running.
func (n *Node) Freeze() {
	n.c.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.machine.Freeze(); err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	n.frozen = true
}

// Frozen reports whether the machine is on and frozen.
func (n *Node) Frozen() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machine != nil && n.frozen
}

// Thaw resumes a frozen machine and corrects its clock, as a time service would.
func (n *Node) Thaw() {
	n.c.t.Helper()
	if !n.TryThaw() {
		n.c.t.Fatalf("%s is off", n.Name)
	}
}

// TryThaw is Thaw of a machine that somebody may switch off. It reports whether the machine was on.
func (n *Node) TryThaw() bool {
	n.c.t.Helper()
	n.mu.Lock()
	machine, guest := n.machine, n.guest
	if machine == nil {
		n.mu.Unlock()
		return false
	}
	err := machine.Thaw()
	n.frozen = false
	n.mu.Unlock()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err = setClock(ctx, guest)
	}
	if err != nil && n.machineIs(machine) {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	return err == nil
}

func (n *Node) machineIs(m *qemu.Machine) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machine == m
}

// CutFromNodes blocks the traffic between this node and all others.
func (n *Node) CutFromNodes() {
	n.c.t.Helper()
	n.cut = true
	for _, other := range n.c.Nodes {
		if other != n {
			n.cutFrom(other.Address)
		}
	}
}

// Mute blocks what this node sends to all others, but not what they send to it.
func (n *Node) Mute() {
	n.c.t.Helper()
	for _, other := range n.c.Nodes {
		if other != n {
			if err := n.c.network.mute(n.Address, other.Address); err != nil {
				n.c.t.Fatalf("%s: %v", n.Name, err)
			}
		}
	}
}

// CutFrom blocks the traffic between this node and another.
func (n *Node) CutFrom(other *Node) {
	n.c.t.Helper()
	n.cutFrom(other.Address)
}

// Firewall closes these TCP ports of this node to all others: "80", or "7000-7999".
func (n *Node) Firewall(ports string) {
	n.c.t.Helper()
	if err := n.c.network.block(n.Address, ports); err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
}

// CutFromCloud blocks the traffic between this node and the cloud's API and metadata service.
func (n *Node) CutFromCloud() {
	n.c.t.Helper()
	n.cutFrom(api)
	n.cutFrom(metadata)
}

func (n *Node) cutFrom(address string) {
	if err := n.c.network.cut(n.Address, address); err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
}

// Heal removes all blocks of this node.
func (n *Node) Heal() {
	n.c.t.Helper()
	if err := n.c.network.heal(n.Address); err != nil {
		n.c.t.Fatalf("%s: %v", n.Name, err)
	}
	n.cut = false
}

// CloudDown makes all API calls fail for all nodes until up is called.
func (c *Cluster) CloudDown() (up func()) {
	return c.Cloud.Inject(cloud.Rule{Fault: cloud.Fail, Code: "Unavailable"})
}

// KillEngine kills dockerd only: containers and plugins continue. It restarts after 2 s unless stayDown is set.
func (n *Node) KillEngine(stayDown bool) {
	n.c.t.Helper()
	script := "kill -9 $(cat /run/docker.pid)"
	if stayDown {
		script = "touch /run/no-engine; " + script
	}
	n.Run("sh", "-ec", script)
}

// HangEngine stops dockerd from running, but does not end it.
func (n *Node) HangEngine() {
	n.c.t.Helper()
	n.Run("sh", "-ec", "kill -STOP $(cat /run/docker.pid)")
}

// ResumeEngine lets a dockerd that hangs go on.
func (n *Node) ResumeEngine() {
	n.c.t.Helper()
	n.Run("sh", "-ec", "kill -CONT $(cat /run/docker.pid)")
	n.awaitEngine()
}

// FillRoot writes /fill until the root disk is full.
func (n *Node) FillRoot() {
	n.c.t.Helper()
	n.Run("sh", "-c", "cat /dev/zero >/fill; df / | grep '100%'")
}

// StopEngine stops dockerd cleanly and keeps it down.
func (n *Node) StopEngine() {
	n.c.t.Helper()
	n.Run("/etc/guest/stop")
}

// StartEngine starts dockerd and waits for it.
func (n *Node) StartEngine() {
	n.c.t.Helper()
	n.Run("rm", "-f", "/run/no-engine")
	n.awaitEngine()
}

// KillPlugin kills all plugins and waits until the engine has restarted them.
func (n *Node) KillPlugin() {
	n.c.t.Helper()
	before := n.Run("pgrep", "-x", "blockvol")
	n.Run("pkill", "-9", "-x", "blockvol")
	n.c.Eventually("the engine of "+n.Name+" starts the plugins again", func() error {
		now, err := n.Try("pgrep", "-x", "blockvol")
		if err != nil {
			return err
		}
		for _, pid := range strings.Fields(now) {
			if strings.Contains(" "+strings.ReplaceAll(before, "\n", " ")+" ", " "+pid+" ") {
				return fmt.Errorf("process %s has not been restarted", pid)
			}
		}
		if len(strings.Fields(now)) < len(n.c.cfg.Plugins) {
			return errNotYet
		}
		return nil
	})
}

// Replace replaces a terminated node by a new instance started from the image.
func (n *Node) Replace() *Node {
	n.c.t.Helper()
	c := n.c
	if _, err := c.Manager().TryDocker("node", "rm", "--force", n.Name); err != nil {
		c.t.Fatalf("%v", err)
	}
	successor := c.newNode()
	for i := range c.Nodes {
		if c.Nodes[i] == n {
			c.Nodes[i] = successor
		}
	}
	c.join(successor)
	c.Settle()
	return successor
}

// Add adds a node to the Swarm.
func (c *Cluster) Add() *Node {
	c.t.Helper()
	n := c.newNode()
	c.Nodes = append(c.Nodes, n)
	c.join(n)
	return n
}

// join starts a new node from the image and has it join the Swarm.
func (c *Cluster) join(n *Node) {
	c.t.Helper()
	err := n.launch()
	if err == nil {
		err = n.installPlugins()
	}
	if err == nil {
		_, err = n.TryDocker("swarm", "join", "--token", c.token, c.Manager().Address)
	}
	if err != nil {
		c.t.Fatalf("%v", err)
	}
}
