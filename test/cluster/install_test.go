package cluster_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cluster"
)

// installation is a Swarm whose plugins the shipped stack installs.
type installation struct {
	*cluster.Cluster
	t     *testing.T
	stack string // file
}

func (i *installation) deploy(version string) {
	i.t.Helper()
	i.t.Setenv("REGISTRY", cluster.Registry)
	i.t.Setenv("VERSION", version)
	i.Deploy("blockvol", i.stack)
}

// settings makes the settings of the nodes those lines from the next deploy on. They are a template, so that nodes can differ.
func (i *installation) settings(name string, lines []string) {
	i.t.Helper()
	dir := i.t.TempDir()
	file := filepath.Join(dir, name)
	require.NoError(i.t, os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600))
	i.Manager().Docker("config", "create", "--template-driver", "golang", name, file)
	stack, err := os.ReadFile("../../scripts/blockvol.yml")
	require.NoError(i.t, err)
	named := strings.Replace(string(stack), "name: blockvol-settings\n", "name: "+name+"\n", 1)
	i.stack = filepath.Join(dir, "blockvol.yml")
	require.NoError(i.t, os.WriteFile(i.stack, []byte(named), 0o600))
}

// on waits until the plugin of that version works on these nodes.
func (i *installation) on(version string, nodes ...*cluster.Node) {
	i.t.Helper()
	for _, n := range nodes {
		i.Eventually("version "+version+" works on "+n.Name, func() error {
			installed, err := n.TryDocker("plugin", "inspect", "--format", "{{.Enabled}} {{.PluginReference}}", "blockvol")
			if want := "true " + cluster.Registry + "/blockvol:" + version + "-amd64"; err == nil && installed != want {
				err = errors.New(installed)
			}
			return err
		})
	}
	want := fmt.Sprintf("%d/%d", len(nodes), len(nodes))
	i.Eventually("the installer is healthy on "+want+" nodes", func() error {
		replicas, err := i.Manager().TryDocker("service", "ls", "--filter", "name=blockvol_installer", "--format", "{{.Replicas}}")
		if err == nil && replicas != want {
			tasks, _ := i.Manager().TryDocker("service", "ps", "--no-trunc", "--format", "{{.Node}} {{.CurrentState}} {{.Error}}", "blockvol_installer")
			err = fmt.Errorf("%s\n%s", replicas, tasks)
		}
		return err
	})
}

// updated waits until the last update has ended in that state.
func (i *installation) updated(state string) {
	i.t.Helper()
	i.Eventually("the update is "+state, func() error {
		update, err := i.Manager().TryDocker("service", "inspect", "--format", "{{with .UpdateStatus}}{{.State}} {{.Message}}{{end}}", "blockvol_installer")
		if err == nil && !strings.HasPrefix(update, state+" ") {
			err = errors.New(update)
		}
		return err
	})
}

// The shipped stack: three nodes, a fourth joins later, one is off during an update, one has a wrong setting, a service writes all
// the while; in the end it is uninstalled.
func TestTheStackInstallsAndUpdatesASwarm(t *testing.T) {
	long(t)
	kind := fronts.EC2(nil)
	c := cluster.Start(t, cluster.Config{
		Kind: kind, Bare: true, Dir: "../../build/plugin", Log: t.Logf, Cloud: cloud.Config{Latency: latency, Times: times, Lag: lag},
	})
	t.Cleanup(func() {
		if t.Failed() {
			c.SaveLogs(logs)
			out, err := c.Manager().TryDocker("service", "logs", "--timestamps", "blockvol_installer")
			t.Log(out, err)
		}
	})
	i := &installation{Cluster: c, t: t}
	manager := c.Nodes[0]
	c.Secret("blockvol-secrets", "PEER_KEY="+newPeerKey())
	settings := append(kind.Settings(c.Front, "", "http://"+cluster.API, "http://"+cluster.Metadata), "PROVIDER=aws", "LOG_LEVEL=debug")
	i.settings("first", settings)

	version := c.PushInstaller()
	begin := time.Now()
	i.deploy(version)
	i.on(version, c.Nodes...)
	t.Logf("installed on %d nodes after %.1f s", len(c.Nodes), time.Since(begin).Seconds())
	c.Settle()
	w := c.StartWriter("diary", "blockvol")
	t.Logf("the first service writes to its volume %.1f s after the stack was deployed", time.Since(begin).Seconds())
	at := w.Node()
	w.OnlyOn(at)

	begin = time.Now()
	fourth := c.Add()
	i.on(version, c.Nodes...)
	t.Logf("a node that has joined has the plugin after %.1f s", time.Since(begin).Seconds())

	version = c.PushInstaller()
	begin = time.Now()
	i.deploy(version)
	i.on(version, c.Nodes...)
	i.updated("completed")
	w.Await("it writes on")
	t.Logf("%d nodes are updated after %.1f s; the longest pause of the writer was %.2f s", len(c.Nodes), time.Since(begin).Seconds(), c.Ledger.Gap(w.Name, begin).Seconds())
	assert.Len(t, c.Ledger.Sessions(w.Name), 1, "the writer has not been restarted")

	// One is off.
	fourth.PowerOff()
	version = c.PushInstaller()
	i.deploy(version)
	i.on(version, c.Nodes[:3]...)
	fourth.PowerOn()
	i.on(version, c.Nodes...)

	// One has a wrong setting.
	former := version
	version = c.PushInstaller()
	i.settings("second", append(settings, `{{if eq .Node.Hostname "`+fourth.Name+`"}}AWS_REGION=nowhere-1{{end}}`))
	i.deploy(version)
	i.updated("paused")
	t.Log(manager.Docker("service", "logs", "blockvol_installer"))
	reported := manager.Docker("service", "ps", "--no-trunc", "--filter", "node="+fourth.Name, "--format", "{{.Error}}", "blockvol_installer")
	assert.Contains(t, reported, "non-zero exit (5)")
	assert.Equal(t, "true "+cluster.Registry+"/blockvol:"+former+"-amd64", fourth.Docker("plugin", "inspect", "--format", "{{.Enabled}} {{.PluginReference}}", "blockvol"))
	w.Await("it writes on")
	i.settings("third", settings)
	i.deploy(version)
	i.on(version, c.Nodes...)
	w.Await("it writes on")
	w.OnlyOn(at)
	w.Remove()

	manager.Docker("stack", "rm", "blockvol")
	manager.Docker("service", "create", "--detach", "--name", "blockvol-uninstall", "--mode", "global-job", "--network", "host", "--no-resolve-image",
		"--mount", "type=bind,source=/var/run/docker.sock,target=/var/run/docker.sock", "--mount", "type=bind,source=/run/docker/plugins,target=/run/docker/plugins",
		cluster.Registry+"/blockvol-installer:"+version, "uninstall")
	c.Eventually("the plugin is removed everywhere", func() error {
		jobs, err := manager.TryDocker("service", "ps", "--no-trunc", "--format", "{{.Node}} {{.CurrentState}} {{.Error}}", "blockvol-uninstall")
		if err == nil && strings.Count(jobs, " Complete ") != len(c.Nodes) {
			err = errors.New(jobs)
		}
		return err
	})
	manager.Docker("service", "rm", "blockvol-uninstall")
	for _, n := range c.Nodes {
		assert.Empty(t, n.Docker("plugin", "ls", "--quiet"), n.Name)
		assert.Empty(t, n.Run("sh", "-c", "find /var/lib/blockvol -type f; ls /usr/local/bin/blockvol 2>/dev/null; true"), n.Name)
	}
	c.NothingLeft()
}
