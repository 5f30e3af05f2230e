package cluster_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
)

// Ten services lose their node at once, and one of the two remaining nodes cannot take half of them.
func TestTenVolumesMoveFromAFailedNode(t *testing.T) {
	long(t)
	const (
		places = 3
		soon   = 5 * time.Minute
	)
	c := shared(t)
	large, dying, small := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	// An m5.large can have 28 volumes and network interfaces, including the root volume.
	c.Cloud.SetInterfaces(small.Instance, 28-1-places)
	defer c.Cloud.SetInterfaces(small.Instance, 1)

	var specs []cluster.WriterSpec
	for i := range 10 {
		specs = append(specs, cluster.WriterSpec{Name: "ten" + strconv.Itoa(i), Driver: driverOf("stopped")})
	}
	var writers []*cluster.Writer
	begin := time.Now()
	c.Place(dying, func() { writers = c.StartWriters(specs...) })
	t.Logf("ten services write after %.1f s", time.Since(begin).Seconds())

	begin = time.Now()
	dying.PowerOff()
	on := map[string]int{}
	for _, w := range writers {
		ack, err := w.TryAwait(time.Until(begin.Add(soon)), ledger.NotOn(dying.Name))
		require.NoError(t, err, "%s", w.Story())
		t.Logf("%s writes on %s after %.1f s", w.Name, ack.Node, ack.At.Sub(begin).Seconds())
		on[ack.Node]++
	}
	assert.LessOrEqual(t, on[small.Name], places)
	assert.Equal(t, len(writers), on[small.Name]+on[large.Name])
	full := 0
	for _, w := range writers {
		for _, e := range w.Errors() {
			if reported, is := strings.CutPrefix(e.Refusal(), "node holds as many volumes as it can: "); is {
				full++
				assert.Contains(t, reported, ": run the service on another node")
			}
		}
	}
	assert.Positive(t, full, "`docker service ps` says that the node is full:\n%s", writers[0].Story())
	step := steps(t)
	dying.PowerOn()
	c.Settle()
	step("the node is back")
	c.RemoveWriters(writers...)
	c.NothingLeft()
	step("all removed")
}

// steps returns a function that logs the duration of a step.
func steps(t *testing.T) func(what string) {
	t.Helper()
	begin := time.Now()
	return func(what string) {
		t.Helper()
		t.Logf("%s in %.1f s", what, time.Since(begin).Seconds())
		begin = time.Now()
	}
}

func TestEachSlotKeepsItsOwnVolume(t *testing.T) {
	long(t)
	c := shared(t)
	step := steps(t)
	writers := c.StartWriters(cluster.WriterSpec{Name: "slots", Driver: driverOf("stopped"), Volume: "data-{{.Service.Name}}-{{.Task.Slot}}", Slots: 3})
	step("they write")
	from := writers[0].Node()
	c.Availability(from, "drain")
	for _, w := range writers {
		w.Await("it writes elsewhere", ledger.NotOn(from.Name))
	}
	c.Availability(from, "active")
	step("moved")

	scale := func(n int) { writers[0].Update("--replicas", strconv.Itoa(n)) }
	scale(2)
	var idle *cluster.Writer
	c.Eventually("one volume is detached", func() error {
		i := slices.IndexFunc(writers, func(w *cluster.Writer) bool { return w.Volume().State == cloud.Available })
		if i < 0 {
			return errors.New(writers[0].Tasks())
		}
		idle = writers[i]
		return nil
	})
	step("scaled to 2")
	scale(3)
	idle.Await("it writes again")
	step("scaled to 3")
	for _, w := range writers {
		w.Await("it writes")
	}
	assert.Len(t, c.Cloud.Volumes(), len(c.Nodes)+len(writers), "root volumes, and one volume for each slot")
	c.RemoveWriters(writers...)
	c.NothingLeft()
	step("removed")
}

// If the image has content at the target, Docker mounts the volume when it creates the new container, while the old task still
// uses it.
func TestCopyUpDuringAMove(t *testing.T) {
	long(t)
	c := shared(t)
	w := c.StartWriters(cluster.WriterSpec{Name: "copyup", Driver: driverOf("stopped"), Target: "/copyup"})[0]
	from := w.Node()
	inside := func(n *cluster.Node, command string) string {
		container := n.Docker("ps", "--quiet", "--no-trunc", "--filter", "label=com.docker.swarm.service.name="+w.Service)
		return n.Docker("exec", container, "sh", "-ec", command)
	}
	assert.Equal(t, "from the image", inside(from, "cat /copyup/file"))
	inside(from, "echo changed >/copyup/file && sync")

	c.Availability(from, "pause")
	begin := time.Now()
	w.Update("--force")
	ack := w.Await("it moves", ledger.NotOn(from.Name))
	c.Availability(from, "active")
	w.OnlyOn(c.Node(ack.Node))
	t.Logf("from %s to %s in %.1f s, gap between acks %.1f s, errors: %q", from.Name, ack.Node, ack.At.Sub(begin).Seconds(),
		c.Ledger.Gap(w.Name, begin).Seconds(), w.Errors())
	assert.Equal(t, "changed", inside(c.Node(ack.Node), "cat /copyup/file"), "the volume keeps its data")
	w.Remove()
	c.NothingLeft()
}

func TestVolumeInAnotherZoneIsNotUsed(t *testing.T) {
	long(t)
	c := shared(t)
	zones := c.Cloud.Zones()
	here, zone := zones[0], zones[1]
	c.Nodes[0].Docker("volume", "create", "--driver", driverOf("stopped"), "--opt", "size=1GiB", "--opt", "zone="+zone, "far")
	before, err := c.Volume("far")
	require.NoError(t, err)
	w := c.CreateWriters(cluster.WriterSpec{Name: "far", Driver: driverOf("stopped")})[0]
	c.Eventually("a task has the error", func() error {
		for _, e := range w.Errors() {
			if reported := e.Refusal(); reported != "" {
				assert.Regexp(t, `^volume "far" \(`+before.ID+`\) is in zone `+zone+` and node i-\w+ in zone `+here+
					`, where it cannot be attached: run the service in zone `+zone, reported)
				return nil
			}
		}
		return errors.New(w.Tasks())
	})
	c.Manager().Docker("service", "rm", w.Service)
	after, err := c.Volume("far")
	require.NoError(t, err, "there is still one volume")
	assert.Equal(t, before.ID, after.ID)
	require.NoError(t, available(after))
	assert.Len(t, c.Cloud.Volumes(), len(c.Nodes)+1)
	for _, n := range c.Nodes {
		assert.Empty(t, n.Run("sh", "-c", "ls /var/lib/blockvol/"+driverOf("stopped")+"/state/journal | grep far; true"), "the journal of %s", n.Name)
	}
	c.RemoveVolume("far")
	c.NothingLeft()
}

// An external volume has no driver in the stack file: Docker asks all drivers for it.
func TestExternalVolumeKeepsItsData(t *testing.T) {
	long(t)
	c := shared(t)
	w := c.StartWriter("external", driverOf("stopped"))
	knows := w.Node()
	before := w.Volume()
	c.Manager().Docker("service", "rm", w.Service)
	c.Eventually("the volume is detached", func() error { return available(w.Volume()) })

	file := filepath.Join(t.TempDir(), "stack.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`
services:
  writer:
    image: busybox
    command: ["/writer", "--file", "/data/ledger", "--to", "172.31.0.4:7000", "--name", "external"]
    environment: {NODE: "{{.Node.Hostname}}", TASK: "{{.Task.ID}}"}
    networks: [outside]
    volumes: ["/usr/local/bin/writer:/writer:ro", "external:/data"]
networks:
  outside: {external: true, name: host}
volumes:
  external: {external: true}
`), 0o600))
	step := steps(t)
	w.Service = "stack_writer"
	c.Place(knows, func() {
		c.Manager().Docker("stack", "deploy", "--detach=true", "--resolve-image=never", "--compose-file", file, "stack")
		w.Await("it writes where the volume is known", ledger.On(knows.Name))
	})
	step("it writes where the volume is known")
	c.Availability(knows, "drain")
	moved := w.Await("it writes where the volume is not known", ledger.NotOn(knows.Name))
	c.Availability(knows, "active")
	step("it writes where the volume is not known")
	c.Manager().Docker("stack", "rm", "stack")
	c.Eventually("the volume is detached", func() error { return available(w.Volume()) })

	// If the driver does not answer for a name that the engine does not know, Docker makes a local volume, which hides the disk
	// while it exists. The disk is not harmed.
	third := c.Nodes[slices.IndexFunc(c.Nodes, func(n *cluster.Node) bool { return n != knows && n.Name != moved.Node })]
	show := []string{"run", "--rm", "--volume", "external:/data", "busybox", "ls", "-A", "/data"}
	third.Docker("plugin", "disable", "--force", driverOf("stopped"))
	assert.Empty(t, third.Docker(show...), "without the plugin, Docker makes an empty local volume")
	third.Docker("plugin", "enable", driverOf("stopped"))
	assert.Empty(t, third.Docker(show...), "the local volume remains")
	third.Docker("volume", "rm", "external")
	assert.Equal(t, "ledger", third.Docker(show...), "the disk is back after the local volume is removed")
	step("hidden by a volume of Docker's, and shown again")
	assert.Equal(t, before.ID, w.Volume().ID)
	c.Settle()
	w.Check()
	c.RemoveVolume(w.Name)
	c.NothingLeft()
}
