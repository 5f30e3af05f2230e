package cluster

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster/ledger"
	"github.com/blockvol/blockvol/test/violation"
)

// WriterSpec is a service whose tasks write acknowledged records, each to a volume of its own.
type WriterSpec struct {
	Name      string   // name of the service
	Driver    string   // driver of the volumes
	Volume    string   // name of the volume, with {{.Task.Slot}} for several; "" is the service's name
	Options   []string // of the volume, besides its size
	Slots     int      // number of tasks; 0 is one
	Target    string   // mountpoint; "" is /data
	Arguments []string
}

// Writer is a slot of such a service. Its ledger has the volume's name.
type Writer struct {
	Service, Name, Driver string
	c                     *Cluster
}

// StartWriter creates a service with one writer and a volume of the same name, and waits for its first record. The arguments
// are for `docker service create`.
func (c *Cluster) StartWriter(name, driver string, arguments ...string) *Writer {
	c.t.Helper()
	return c.StartWriters(WriterSpec{Name: name, Driver: driver, Arguments: arguments})[0]
}

// StartWriters creates services and waits until all write.
func (c *Cluster) StartWriters(specs ...WriterSpec) []*Writer {
	c.t.Helper()
	var all []*Writer
	for _, spec := range specs {
		all = append(all, c.CreateWriters(spec)...)
	}
	for _, w := range all {
		w.Await("it writes")
	}
	return all
}

// CreateWriters creates a service without waiting.
func (c *Cluster) CreateWriters(spec WriterSpec) []*Writer {
	c.t.Helper()
	volume, target, slots := cmp.Or(spec.Volume, spec.Name), cmp.Or(spec.Target, "/data"), max(1, spec.Slots)
	mount := "type=volume,source=" + volume + ",target=" + target + ",volume-driver=" + spec.Driver + ",volume-opt=size=1GiB"
	mount = strings.Join(append([]string{mount}, spec.Options...), ",volume-opt=")
	args := append([]string{
		"service", "create", "--detach", "--no-resolve-image", "--name", spec.Name, "--network", "host", "--replicas", strconv.Itoa(slots),
		"--env", "NODE={{.Node.Hostname}}", "--env", "TASK={{.Task.ID}}", "--env", "LEDGER=" + volume, "--stop-grace-period", "10s",
		"--mount", "type=bind,source=/usr/local/bin/writer,target=/writer,readonly",
		"--mount", mount,
	}, spec.Arguments...)
	c.Manager().Docker(append(args, "busybox", "sh", "-c", `exec /writer --file `+target+`/ledger --to `+observer+`:7000 --name "$LEDGER"`)...)
	var all []*Writer
	for slot := range slots {
		name := strings.NewReplacer("{{.Service.Name}}", spec.Name, "{{.Task.Slot}}", strconv.Itoa(slot+1)).Replace(volume)
		all = append(all, &Writer{spec.Name, name, spec.Driver, c})
	}
	return all
}

// Await waits for a new record that meets the conditions.
func (w *Writer) Await(what string, conditions ...func(ledger.Ack) bool) ledger.Ack {
	w.c.t.Helper()
	last, _ := w.c.Ledger.Last(w.Name)
	ack, err := w.TryAwait(patience, append(conditions, ledger.After(last))...)
	if err != nil {
		w.c.t.Fatalf("%s: %s: %v\n%s", w.Name, what, err, w.Story())
	}
	return ack
}

// Story returns what helps to find out why a writer does not write.
func (w *Writer) Story() string {
	var b strings.Builder
	fmt.Fprintln(&b, w.Tasks())
	if v, err := w.c.Volume(w.Name); err != nil {
		fmt.Fprintln(&b, err)
	} else {
		fmt.Fprintf(&b, "%s is %s %+v\n", v.ID, v.State, v.Attachments)
	}
	for _, n := range w.c.Nodes {
		fmt.Fprintf(&b, "--- %s, %s:\n", n.Name, n.Instance)
		if n.reachable() {
			// The plugins' log is part of the engine's.
			log, err := n.Try("sh", "-c", `grep -F "$0" /var/log/dockerd.log | tail -n 20`, w.Name)
			fmt.Fprintln(&b, log)
			if err != nil {
				fmt.Fprintln(&b, err)
			}
		}
	}
	return b.String()
}

// TryAwait waits for a record that meets the conditions.
func (w *Writer) TryAwait(patience time.Duration, conditions ...func(ledger.Ack) bool) (ledger.Ack, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	return w.c.Ledger.WaitAck(ctx, w.Name, conditions...)
}

// Latest returns the session that wrote last.
func (w *Writer) Latest() ledger.Session {
	w.c.t.Helper()
	sessions := w.c.Ledger.Sessions(w.Name)
	if len(sessions) == 0 {
		w.c.t.Fatalf("%s has never written", w.Name)
	}
	return sessions[len(sessions)-1]
}

// Node returns the node that wrote last.
func (w *Writer) Node() *Node {
	w.c.t.Helper()
	return w.c.Node(w.Latest().Node)
}

// Wanted returns the service's tasks that the Swarm wants to run.
func (w *Writer) Wanted() ([]string, error) {
	out, err := w.c.Manager().TryDocker("service", "ps", "--no-trunc", "--quiet", "--filter", "desired-state=running", w.Service)
	return strings.Fields(out), err
}

// Tasks returns the output of `docker service ps`.
func (w *Writer) Tasks() string {
	out, err := w.c.Manager().TryDocker("service", "ps", "--no-trunc", w.Service)
	if err != nil {
		return err.Error()
	}
	return out
}

// TaskError is the error of a task in `docker service ps`.
type TaskError struct{ Task, Text string }

// Errors returns the errors of the service's tasks, the newest first.
func (w *Writer) Errors() (reported []TaskError) {
	out, err := w.c.Manager().TryDocker("service", "ps", "--no-trunc", "--format", "{{.ID}} {{.Error}}", w.Service)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(out) {
		if task, text, _ := strings.Cut(strings.TrimSpace(line), " "); text != "" {
			reported = append(reported, TaskError{task, text})
		}
	}
	return reported
}

// Refusal returns blockvol's error, or "" if the error is another's.
func (e TaskError) Refusal() string {
	_, reported, _ := strings.Cut(e.Text, "VolumeDriver.Mount: ")
	return strings.TrimSuffix(reported, `"`)
}

// Update runs `docker service update` in the background.
func (w *Writer) Update(arguments ...string) {
	w.c.t.Helper()
	w.c.change(append(append([]string{"service", "update", "--detach", "--no-resolve-image"}, arguments...), w.Service)...)
}

// change changes an object of the Swarm. It retries, because the Swarm may change the object at the same time, and restarted
// managers need time to find each other.
func (c *Cluster) change(command ...string) {
	c.t.Helper()
	c.Eventually(strings.Join(command, " "), func() error {
		_, err := c.Manager().TryDocker(command...)
		if err != nil && !strings.Contains(err.Error(), "update out of sequence") && !strings.Contains(err.Error(), "loss of quorum") {
			c.t.Fatalf("%v", err)
		}
		return err
	})
}

// Volume returns the writer's volume in the cloud.
func (w *Writer) Volume() cloud.Volume {
	w.c.t.Helper()
	v, err := w.c.Volume(w.Name)
	if err != nil {
		w.c.t.Fatalf("%v", err)
	}
	return v
}

// Volume returns the volume with this name in the cloud.
func (c *Cluster) Volume(name string) (cloud.Volume, error) {
	var found []cloud.Volume
	for _, v := range c.Cloud.Volumes() {
		if slices.ContainsFunc(c.cfg.Plugins, func(p Plugin) bool { return c.cfg.Kind.Named(v, p.Cluster, name) }) {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		return cloud.Volume{}, fmt.Errorf("there are %d volumes %s", len(found), name)
	}
	return found[0], nil
}

// Remove removes the service, waits until its volume is detached, checks all records and the file system in the volume's image,
// and deletes the volume.
func (w *Writer) Remove() {
	w.c.t.Helper()
	w.c.RemoveWriters(w)
}

// RemoveWriters does the same for all writers of services.
func (c *Cluster) RemoveWriters(writers ...*Writer) {
	c.t.Helper()
	removed := map[string]bool{}
	for _, w := range writers {
		if !removed[w.Service] {
			c.Manager().Docker("service", "rm", w.Service)
		}
		removed[w.Service] = true
	}
	for _, w := range writers {
		w.Check()
		c.RemoveVolume(w.Name)
	}
}

// RemoveVolume deletes a volume that is no longer used, or soon will not be.
func (c *Cluster) RemoveVolume(name string) {
	c.t.Helper()
	c.Eventually("volume "+name+" is deleted", func() error {
		_, err := c.Manager().TryDocker("volume", "rm", name)
		if err != nil && strings.Contains(err.Error(), "no such volume") { // the response to an earlier attempt was lost
			return nil
		}
		return err
	})
}

// Check waits until the volume is detached and checks all records and the file system in the volume's image.
func (w *Writer) Check() {
	w.c.t.Helper()
	w.c.Eventually(w.Name+" is attached to no node", func() error {
		if v := w.Volume(); v.State != cloud.Available {
			return fmt.Errorf("state %s: %v", v.State, v.Attachments)
		}
		return nil
	})
	summary := w.read(w.c.storage.Image(w.Volume().ID))
	if err := w.c.Ledger.Check(w.Name, summary); err != nil {
		w.c.t.Fatalf("%v", err)
	}
}

// CheckSnapshot checks the file system in a snapshot of the volume and all records there, and returns how many these are. Nothing repairs
// the file system before: it was frozen.
func (w *Writer) CheckSnapshot(id string) uint64 {
	w.c.t.Helper()
	return w.read(w.c.storage.Snapshot(id)).Last
}

// read checks the file system in an image and its ledger.
func (w *Writer) read(image string) ledger.Summary {
	w.c.t.Helper()
	if out, err := exec.Command("e2fsck", "-f", "-n", image).CombinedOutput(); err != nil {
		w.c.t.Fatalf("%v", violation.Of(fmt.Errorf("%s: the file system is damaged: %w: %s", w.Name, err, out)))
	}
	var stderr bytes.Buffer
	cmd := exec.Command("debugfs", "-R", "cat data/ledger", image)
	cmd.Stderr = &stderr
	content, err := cmd.Output()
	if err != nil {
		w.c.t.Fatalf("%s: reading the ledger: %v: %s", w.Name, err, &stderr)
	}
	summary, err := ledger.Verify(bytes.NewReader(content))
	if err != nil {
		w.c.t.Fatalf("%v", violation.Of(fmt.Errorf("%s: %w", w.Name, err)))
	}
	return summary
}

// OnlyOn waits until only this node has the volume's disk, according to the cloud and to all kernels that answer. It is for
// tests with no other volumes.
func (w *Writer) OnlyOn(node *Node) {
	w.c.t.Helper()
	w.c.eventually(w.Name+" is on "+node.Name+" alone", w.Story, func() error {
		v := w.Volume()
		if len(v.Attachments) != 1 || v.Attachments[0].Instance != node.Instance || v.Attachments[0].State != cloud.Attached {
			return fmt.Errorf("the cloud says %s: %+v", v.State, v.Attachments)
		}
		for _, n := range w.c.Nodes {
			want := ""
			if n == node {
				want = w.c.serial(v.ID) + " mounted"
			}
			if err := n.shows(want); err != nil {
				return err
			}
		}
		return nil
	})
}

// Misplaced returns disks that a node shows while the cloud says they are on another. Disks being attached or detached are
// ignored.
func (c *Cluster) Misplaced() (found []string) {
	for _, n := range c.Nodes {
		if !n.reachable() {
			continue
		}
		before := c.held()
		serials, err := n.disks()
		if err != nil {
			continue // it has just been detached
		}
		after := c.held()
		for _, serial := range strings.Fields(serials) {
			if a := before[serial]; a.Instance != "" && a.Instance != n.Instance && a == after[serial] {
				found = append(found, fmt.Sprintf("%s (%s) shows disk %s, which the cloud has on %s since %s", n.Name, n.Instance, serial, a.Instance, a.Since.UTC().Format(time.TimeOnly)))
			}
		}
	}
	return found
}

// held returns the attachments that are not pending, by serial.
func (c *Cluster) held() map[string]cloud.Attachment {
	held := map[string]cloud.Attachment{}
	for _, v := range c.Cloud.Volumes() {
		for _, a := range v.Attachments {
			if a.State == cloud.Attached {
				held[c.serial(v.ID)] = a
			}
		}
	}
	return held
}

// NothingLeft waits until no node shows or has mounted a disk.
func (c *Cluster) NothingLeft() {
	c.t.Helper()
	for _, n := range c.Nodes {
		c.Eventually("nothing is left on "+n.Name, func() error { return n.shows("") })
	}
	c.NoViolations()
}

// shows compares the disks of a node with what it should have, if it answers. Mounts in all namespaces count.
func (n *Node) shows(want string) error {
	if !n.reachable() {
		return nil
	}
	shown, err := n.disks()
	if err == nil && shown != want {
		err = fmt.Errorf("%s shows %q, not %q", n.Name, shown, want)
	}
	return err
}

// disks returns the serials of the node's disks except its own, and whether they are mounted in any namespace.
func (n *Node) disks() (string, error) {
	shown, err := n.Try("agent", "disks")
	lines := slices.DeleteFunc(strings.Split(shown, "\n"), func(line string) bool { return strings.HasPrefix(line, "root ") })
	return strings.Join(lines, "\n"), err
}

// NoViolations fails the test if a ledger has a violation.
func (c *Cluster) NoViolations() {
	c.t.Helper()
	if violations := c.Ledger.Violations(); len(violations) > 0 {
		c.t.Fatalf("%v", errors.Join(violations...))
	}
}

// Place makes a node the only one that gets new tasks while do runs.
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

// Availability sets a node's availability: active, pause or drain.
func (c *Cluster) Availability(n *Node, availability string) {
	c.t.Helper()
	c.change("node", "update", "--availability", availability, n.Name)
}

// Use makes failures those of another test from now on.
func (c *Cluster) Use(t T) { c.t = t }
