package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster/ledger"
)

// Writer is a service of one task that writes acknowledged records to a volume of the same name.
type Writer struct {
	Name, Driver string
	c            *Cluster
}

// StartWriter makes a writer's service, and waits for its first record. Arguments are further ones for
// `docker service create`.
func (c *Cluster) StartWriter(name, driver string, arguments ...string) *Writer {
	c.t.Helper()
	w := &Writer{name, driver, c}
	args := append([]string{
		"service", "create", "--detach", "--no-resolve-image", "--name", name, "--network", "host",
		"--env", "NODE={{.Node.Hostname}}", "--env", "TASK={{.Task.ID}}", "--stop-grace-period", "10s",
		"--mount", "type=bind,source=/usr/local/bin/writer,target=/writer,readonly",
		"--mount", "type=volume,source=" + name + ",target=/data,volume-driver=" + driver + ",volume-opt=size=1GiB",
	}, arguments...)
	c.Manager().Docker(append(args, "busybox", "/writer", "--file", "/data/ledger", "--to", observer+":7000", "--name", name)...)
	w.Await("it writes")
	return w
}

// Await waits for a record that is not yet there and fulfils conditions.
func (w *Writer) Await(what string, conditions ...func(ledger.Ack) bool) ledger.Ack {
	w.c.t.Helper()
	last, _ := w.c.Ledger.Last(w.Name)
	ack, err := w.TryAwait(patience, append(conditions, ledger.After(last))...)
	if err != nil {
		w.c.t.Fatalf("%s: %s: %v\n%s", w.Name, what, err, w.Tasks())
	}
	return ack
}

// TryAwait waits for a record that fulfils conditions.
func (w *Writer) TryAwait(patience time.Duration, conditions ...func(ledger.Ack) bool) (ledger.Ack, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	return w.c.Ledger.WaitAck(ctx, w.Name, conditions...)
}

// Node is the node that wrote last.
func (w *Writer) Node() *Node {
	w.c.t.Helper()
	sessions := w.c.Ledger.Sessions(w.Name)
	if len(sessions) == 0 {
		w.c.t.Fatalf("%s has never written", w.Name)
	}
	return w.c.Node(sessions[len(sessions)-1].Node)
}

// Tasks is what `docker service ps` shows.
func (w *Writer) Tasks() string {
	out, err := w.c.Manager().TryDocker("service", "ps", "--no-trunc", w.Name)
	if err != nil {
		return err.Error()
	}
	return out
}

// Errors are what `docker service ps` shows as the tasks' errors, the newest first.
func (w *Writer) Errors() []string {
	out, err := w.c.Manager().TryDocker("service", "ps", "--no-trunc", "--format", "{{.Error}}", w.Name)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool { return line == "" })
}

// Update runs `docker service update` in the background.
func (w *Writer) Update(arguments ...string) {
	w.c.t.Helper()
	w.c.Manager().Docker(append(append([]string{"service", "update", "--detach", "--no-resolve-image"}, arguments...), w.Name)...)
}

// Volume is the cloud's.
func (w *Writer) Volume() cloud.Volume {
	w.c.t.Helper()
	v, err := w.c.Volume(w.Name)
	if err != nil {
		w.c.t.Fatalf("%v", err)
	}
	return v
}

// Volume returns the cloud's volume of a name.
func (c *Cluster) Volume(name string) (cloud.Volume, error) {
	var found []cloud.Volume
	for _, v := range c.Cloud.Volumes() {
		if v.Tags["blockvol:name"] == name {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		return cloud.Volume{}, fmt.Errorf("there are %d volumes %s", len(found), name)
	}
	return found[0], nil
}

// Remove removes the service, waits until its volume is released, checks every record and the file system in the volume's
// image, and deletes the volume.
func (w *Writer) Remove() {
	w.c.t.Helper()
	w.c.Manager().Docker("service", "rm", w.Name)
	w.Check()
	w.c.Eventually("the volume is deleted", func() error {
		_, err := w.c.Manager().TryDocker("volume", "rm", "--force", w.Name)
		return err
	})
}

// Check waits until the volume is attached nowhere, and checks every record and the file system in the volume's image.
func (w *Writer) Check() {
	w.c.t.Helper()
	w.c.Eventually(w.Name+" is attached to no node", func() error {
		if v := w.Volume(); v.State != cloud.Available {
			return fmt.Errorf("it is %s: %v", v.State, v.Attachments)
		}
		return nil
	})
	image := w.c.storage.Image(w.Volume().ID)
	if out, err := exec.Command("e2fsck", "-f", "-n", image).CombinedOutput(); err != nil {
		w.c.t.Fatalf("%s: the file system is not whole: %v: %s", w.Name, err, out)
	}
	var stderr bytes.Buffer
	cmd := exec.Command("debugfs", "-R", "cat data/ledger", image)
	cmd.Stderr = &stderr
	content, err := cmd.Output()
	if err != nil {
		w.c.t.Fatalf("%s: reading the ledger: %v: %s", w.Name, err, &stderr)
	}
	summary, err := ledger.Verify(bytes.NewReader(content))
	if err == nil {
		err = w.c.Ledger.Check(w.Name, summary)
	}
	if err != nil {
		w.c.t.Fatalf("%s: %v", w.Name, err)
	}
}

// NothingLeft waits until no node has a disk, or a file system of one mounted.
func (c *Cluster) NothingLeft() {
	c.t.Helper()
	for _, n := range c.Nodes {
		if !n.reachable() {
			continue
		}
		c.Eventually("nothing is left on "+n.Name, func() error {
			left, err := n.Try("sh", "-c", "ls /sys/class/nvme; grep nvme /proc/1/mountinfo")
			if left != "" {
				return errors.New(left)
			}
			if err != nil && !strings.Contains(err.Error(), "status 1") { // grep finds nothing
				return err
			}
			return nil
		})
	}
	c.NoViolations()
}

// NoViolations fails the test if a ledger's rules have been broken.
func (c *Cluster) NoViolations() {
	c.t.Helper()
	if violations := c.Ledger.Violations(); len(violations) > 0 {
		c.t.Fatalf("acknowledged records: %v", errors.Join(violations...))
	}
}

// Place makes a node the only one that takes new tasks, while something is done.
func (c *Cluster) Place(on *Node, do func()) {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n != on {
			c.Availability(n, "pause")
		}
	}
	do()
	for _, n := range c.Nodes {
		c.Availability(n, "active")
	}
}

// Availability sets whether a node takes tasks: active, pause, drain.
func (c *Cluster) Availability(n *Node, availability string) {
	c.t.Helper()
	c.Manager().Docker("node", "update", "--availability", availability, n.Name)
}

// Use lets another test decide: what fails from now on is its failure.
func (c *Cluster) Use(t T) { c.t = t }
