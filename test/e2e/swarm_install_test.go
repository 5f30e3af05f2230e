package e2e_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/manual"
)

// oneNode is a Swarm of one node, whose registry has versions of the plugin and of its installer.
type oneNode struct {
	*reader
	registry string
	image    string // the installer's
}

func newOneNode(t *testing.T, versions ...string) *oneNode {
	t.Helper()
	e := engine.Start(t, engine.Arguments("--host=unix:///run/docker.sock"))
	r := newReader(t, e)
	e.Run("mount", "-t", "tmpfs", "none", "/usr/local/bin")
	e.Busybox()
	s := &oneNode{r, startRegistry(t, e), filepath.Join(e.Dir, "installer.tar")}
	out, err := exec.Command("../../scripts/installer", "amd64", s.image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	stack, err := os.ReadFile("../../scripts/blockvol.yml")
	require.NoError(t, err)
	sooner := strings.NewReplacer("interval: 10s", "interval: 1s", "delay: 15s", "delay: 1s").Replace(string(stack))
	require.NoError(t, os.WriteFile(filepath.Join(s.work, "blockvol.yml"), []byte(sooner), 0o600))
	for _, version := range versions {
		s.push(version, labelled(t, version))
	}
	e.Docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
	t.Cleanup(func() {
		if t.Failed() {
			out, err := e.Try("service", "logs", "blockvol_installer")
			t.Log(out, err)
			out, err = e.Try("service", "ps", "--no-trunc", "blockvol_installer")
			t.Log(out, err)
		}
	})
	return s
}

// push pushes a plugin that is built in a directory, and the installer of that version.
func (s *oneNode) push(version, dir string) {
	s.t.Helper()
	plugin := s.registry + "/blockvol:" + version + "-amd64"
	s.Docker("plugin", "create", plugin, s.Grantable(dir))
	s.Docker("plugin", "push", plugin)
	s.Docker("plugin", "rm", plugin)
	installer := s.registry + "/blockvol-installer:" + version
	s.Docker("import", "--change", `ENTRYPOINT ["/installer"]`, s.image, installer)
	s.Docker("push", "--quiet", installer)
}

// deploy deploys the stack file that is shipped.
func (s *oneNode) deploy(version string) {
	s.t.Helper()
	s.shell("REGISTRY=" + s.registry + " VERSION=" + version + " docker stack deploy --compose-file blockvol.yml blockvol")
}

// settings makes a config of that name with the lines, and has the stack use it.
func (s *oneNode) settings(name string, lines ...string) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(filepath.Join(s.work, name), []byte(strings.Join(lines, "\n")), 0o600))
	s.shell("docker config create " + name + " " + name)
	s.shell("sed -i 's/name: blockvol-settings.*/name: " + name + "/' blockvol.yml")
}

// awaitInstalled waits until Swarm takes the installer of that version for healthy, and its update for done.
func (s *oneNode) awaitInstalled(version string) {
	s.t.Helper()
	s.Eventually("the installer is healthy", func() error {
		update := s.Docker("service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}} {{with .UpdateStatus}}{{.State}}{{end}}", "blockvol_installer")
		running := s.Docker("service", "ls", "--format", "{{.Replicas}}", "--filter", "name=blockvol_installer")
		if !strings.Contains(update, ":"+version) || strings.Contains(update, "updating") || running != "1/1" {
			return errors.New(update + " " + running)
		}
		return nil
	})
	s.requirePlugin(version)
}

func (s *oneNode) requirePlugin(version string) {
	s.t.Helper()
	require.Regexp(s.t, "^true .*version "+version+":", s.Docker("plugin", "inspect", "--format", "{{.Enabled}} {{.PluginReference}} {{.Config.Description}}", engine.Plugin))
}

// awaitPaused waits until Swarm has paused the update, and the log has the reason.
func (s *oneNode) awaitPaused(why, code string) {
	s.t.Helper()
	s.Eventually("the update is paused", func() error {
		state := s.Docker("service", "inspect", "--format", "{{.UpdateStatus.State}}", "blockvol_installer")
		if state != "paused" {
			return errors.New(state)
		}
		return nil
	})
	assert.Contains(s.t, s.Docker("service", "ps", "--no-trunc", "--format", "{{.Error}}", "blockvol_installer"), "non-zero exit ("+code+")")
	cmd := s.Client(s.t.Context(), "service", "logs", "blockvol_installer")
	logs, err := cmd.CombinedOutput()
	require.NoError(s.t, err)
	assert.Contains(s.t, string(logs), why)
}

// The commands of docs/install-swarm.md, one after the other, on a simulated cloud.
func TestAStackInstallsUpdatesAndRemovesThePlugin(t *testing.T) {
	t.Parallel()
	kind := fronts.All[2]
	require.Equal(t, "hetzner", kind.Provider, "the page's")
	a := openAccount(t, kind)
	s, id := newOneNode(t, "1.0", "1.1"), a.AddInstance(kind.Instance).ID
	s.Run("mkdir", "-p", s.State)
	require.NoError(t, a.disks.Sysfs(id, filepath.Join(s.State, "sysfs")))
	api, metadata := serve(t, s.Engine, "127.0.0.1:0", a.front), serve(t, s.Engine, "127.0.0.1:0", a.front.Metadata(id))
	extra := " args=--sysfs=/data/state/sysfs"
	for _, setting := range kind.Settings(a.front, id, "http://"+api, "http://"+metadata) {
		if token, is := strings.CutPrefix(setting, "HCLOUD_TOKEN="); is {
			require.NoError(t, os.WriteFile(filepath.Join(s.work, "token"), []byte(token+"\n"), 0o600))
		} else {
			extra += " " + setting
		}
	}
	lines, err := manual.Commands("../../docs/install-swarm.md")
	require.NoError(t, err)
	deployed := 0
	var begun time.Time
	for _, line := range lines {
		line = strings.ReplaceAll(line, "=REGISTRY ", "="+s.registry+" ")
		line = strings.ReplaceAll(line, " REGISTRY/", " "+s.registry+"/")
		line = strings.Replace(line, " >settings", extra+" >settings", 1)
		switch {
		case strings.HasPrefix(line, "docker stack rm "):
			requireNoSecretIn(t, s)
			s.Docker("rm", "--force", "writer")
			eventuallyReleased(t, s.Engine)
		case strings.HasPrefix(line, "docker service rm "):
			s.Eventually("the job is done", func() error {
				state := s.Docker("service", "ps", "--format", "{{.CurrentState}}", "blockvol-uninstall")
				if !strings.HasPrefix(state, "Complete") {
					return errors.New(state)
				}
				return nil
			})
			s.requireUninstalled()
		}
		s.shell(line)
		switch {
		case strings.Contains(line, "docker stack deploy"):
			deployed++
			if deployed == 1 {
				begun = time.Now()
				s.awaitInstalled("1.0")
				create(s.Engine, "kept", "size=10GiB")
				startWriter(t, s.Engine, "kept")
				t.Logf("%v from the command to a mounted volume", time.Since(begun))
				continue
			}
			s.awaitInstalled("1.1")
			awaitLines(t, s.Engine, 10)
		case strings.HasPrefix(line, "docker stack rm"):
			s.Eventually("the installer is gone", func() error {
				if left := s.Docker("ps", "--quiet"); left != "" {
					return errors.New(left)
				}
				return nil
			})
		case strings.HasPrefix(line, "docker run ") && strings.HasSuffix(line, " install CLUSTER=shop"):
			s.requirePlugin("1.1")
		}
	}
	require.Equal(t, 3, deployed)
	s.requireUninstalled()
	require.Len(t, fronts.Disks(a.Cloud), 1, "data stays")
}

// requireUninstalled checks that nothing is left, but for what the test has put into the directories.
func (s *oneNode) requireUninstalled() {
	s.t.Helper()
	assert.Empty(s.t, s.Docker("plugin", "ls", "--quiet"))
	assert.Empty(s.t, s.Run("ls", "-A", "/usr/local/bin"))
	assert.NoDirExists(s.t, filepath.Join(s.Dir, "installer"))
	left, err := os.ReadDir(s.State)
	if err == nil && (len(left) != 1 || left[0].Name() != "sysfs") {
		s.t.Errorf("left in the state directory: %v", left)
	}
}

// requireNoSecretIn checks that the token is in the file that is for it, and nowhere where Docker would show it.
func requireNoSecretIn(t *testing.T, s *oneNode) {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(s.work, "token"))
	require.NoError(t, err)
	secret := strings.TrimSpace(string(token))
	require.NotEmpty(t, secret)
	assert.NotContains(t, s.Docker("plugin", "inspect", engine.Plugin), secret)
	logs, err := s.Client(t.Context(), "service", "logs", "blockvol_installer").CombinedOutput()
	require.NoError(t, err)
	assert.NotContains(t, string(logs), secret)
	assert.NotContains(t, s.Log(), secret)
	files, err := filepath.Glob(filepath.Join(s.State, "secrets", "*"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	text, err := os.ReadFile(files[0])
	require.NoError(t, err)
	assert.Equal(t, string(token), string(text))
}
