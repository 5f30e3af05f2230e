package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
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
	updated  string // when the update before the last deploy was begun
}

func newOneNode(t *testing.T, versions ...string) *oneNode {
	t.Helper()
	e := engine.Start(t, engine.Arguments("--host=unix:///run/docker.sock"))
	r := newReader(t, e)
	e.Run("mount", "-t", "tmpfs", "none", "/usr/local/bin")
	e.Busybox()
	s := &oneNode{reader: r, registry: startRegistry(t, e), image: filepath.Join(e.Dir, "installer.tar.gz")}
	out, err := exec.Command("sh", "-ec", `../../scripts/installer "$1" "$2"; mkdir "$3/own"; cp "$(command -v docker)" "$3/own/"`,
		"sh", runtime.GOARCH, s.image, e.Dir).CombinedOutput()
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

// shell runs a command as on a manager, outside of the engine's namespaces, where another release of Debian has no client.
func (s *oneNode) shell(command string) {
	s.t.Helper()
	s.t.Logf("$ %s", command)
	cmd := exec.Command("sh", "-ec", command)
	cmd.Dir, cmd.Env = s.work, s.Client(s.t.Context()).Env
	out, err := cmd.CombinedOutput()
	require.NoError(s.t, err, "%s", out)
}

// push pushes a release that has a plugin, built in a directory, and its installer, as `make push` does. The client of images calls
// the registry itself, which is in the engine's network.
func (s *oneNode) push(version, dir string) {
	s.t.Helper()
	release := filepath.Join(s.Dir, "release-"+version)
	require.NoError(s.t, os.Mkdir(release, 0o700))
	name := "blockvol-" + version + "-plugin-" + runtime.GOARCH
	const script = `
		cp --archive "$1" "$2/$3"
		tar --create --gzip --file "$2/$3.tar.gz" --directory "$2" "$3"
		ln "$4" "$2/blockvol-$5-installer-$6.tar.gz"`
	out, err := exec.Command("sh", "-ec", script, "sh", s.Grantable(dir), release, name, s.image, version, runtime.GOARCH).CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	pushed := s.Run("sh", "-ec", `PATH="$1:$PATH" DOCKER_HOST="$2" DOCKER_CONTEXT= DOCKER_CONFIG="$3" exec "$4" "$5" "$6"`,
		"sh", filepath.Join(s.Dir, "own"), s.Host(), filepath.Join(s.Dir, "client"), absolute(s.t, "../../scripts/push"), s.registry, release)
	assert.Regexp(s.t, "(?m)^"+s.registry+"/blockvol-installer:"+version+"@sha256:[0-9a-f]{64}$", pushed)
}

// deploy deploys the stack file that is shipped.
func (s *oneNode) deploy(version string) {
	s.t.Helper()
	s.updated = s.update("{{.StartedAt}}")
	s.shell("REGISTRY=" + s.registry + " VERSION=" + version + " docker stack deploy --compose-file blockvol.yml blockvol")
}

// update tells about the last update of the installer, empty if there was none.
func (s *oneNode) update(format string) string {
	out, _ := s.Try("service", "inspect", "--format", "{{with .UpdateStatus}}"+format+"{{end}}", "blockvol_installer") // before the first there is no service
	return out
}

// settings makes a config of that name with the lines, and has the stack use it.
func (s *oneNode) settings(name string, lines ...string) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(filepath.Join(s.work, name), []byte(strings.Join(lines, "\n")), 0o600))
	s.shell("docker config create " + name + " " + name)
	s.shell("sed -i '/^  settings:/,/name:/s/name: .*/name: " + name + "/' blockvol.yml")
}

// awaitUpdate waits until the update has ended that the last deploy has begun.
func (s *oneNode) awaitUpdate(state string) {
	s.t.Helper()
	s.Eventually("the update is "+state, func() error {
		update := s.update("{{.StartedAt}} {{.State}} {{.Message}}")
		if strings.HasPrefix(update, s.updated+" ") || !strings.Contains(update, " "+state+" ") {
			return errors.New(update)
		}
		return nil
	})
}

// awaitInstalled waits until Swarm takes the first installer for healthy.
func (s *oneNode) awaitInstalled(version string) {
	s.t.Helper()
	s.Eventually("the installer is healthy", func() error {
		running := s.Docker("service", "ls", "--format", "{{.Replicas}}", "--filter", "name=blockvol_installer")
		if running != "1/1" {
			return errors.New(running)
		}
		return nil
	})
	s.requirePlugin(version)
}

func (s *oneNode) requirePlugin(version string) {
	s.t.Helper()
	require.Regexp(s.t, "^true .*version "+version+":", s.Docker("plugin", "inspect", "--format", "{{.Enabled}} {{.PluginReference}} {{.Config.Description}}", engine.Plugin))
}

// awaitPaused waits until Swarm has paused the update. The task's error and the log tell the reason.
func (s *oneNode) awaitPaused(failed, why string) {
	s.t.Helper()
	s.awaitUpdate("paused")
	// On a busy machine Swarm may take its node for lost, and start a task once more.
	s.Eventually("a task has ended with "+failed+" and said: "+why, func() error {
		tasks := s.Docker("service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "blockvol_installer")
		logs, err := s.Client(s.t.Context(), "service", "logs", "blockvol_installer").CombinedOutput()
		if err == nil && (!strings.Contains(tasks, failed) || !strings.Contains(string(logs), why)) {
			err = fmt.Errorf("%s\n%s", tasks, logs)
		}
		return err
	})
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
	extra := []string{"args=--sysfs=/data/state/sysfs"}
	for _, setting := range kind.Settings(a.front, id, "http://"+api, "http://"+metadata) {
		if token, is := strings.CutPrefix(setting, "HCLOUD_TOKEN="); is {
			require.NoError(t, os.WriteFile(filepath.Join(s.work, "token"), []byte(token+"\n"), 0o600))
		} else {
			extra = append(extra, setting)
		}
	}
	lines, err := manual.Commands("../../docs/install-swarm.md")
	require.NoError(t, err)
	deployed := 0 // by the page
	var begun time.Time
	for _, line := range lines {
		line = strings.ReplaceAll(line, "=REGISTRY ", "="+s.registry+" ")
		line = strings.ReplaceAll(line, " REGISTRY/", " "+s.registry+"/")
		line = strings.Replace(line, " >settings", " "+strings.Join(extra, " ")+" >settings", 1)
		switch {
		case strings.HasPrefix(line, "docker stack rm "):
			requireNoSecretIn(t, s)
			right, err := os.ReadFile(filepath.Join(s.work, "settings"))
			require.NoError(t, err)
			s.settings("wrong", string(right), "TAKEOVER=sometimes")
			s.deploy("1.1")
			s.awaitPaused("non-zero exit (5)", `TAKEOVER is "sometimes" but must be one of never, stopped, fence, always`)
			s.requirePlugin("1.1")
			awaitLines(t, s.Engine, 10)
			s.Docker("rm", "--force", "writer", "clock")
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
		s.updated = s.update("{{.StartedAt}}")
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
				s.Docker("run", "--detach", "--name", "clock", "--volume", "kept:/data", "busybox", "sh", "-ec",
					"while :; do cut -d ' ' -f 1 /proc/uptime >>/data/clock; sleep 0.01; done")
				continue
			}
			begun = time.Now()
			s.awaitUpdate("completed")
			s.requirePlugin("1.1")
			awaitLines(t, s.Engine, 10)
			t.Logf("%v for the update, of which the plugin was disabled for %v; the longest pause of a writer so far was %s s", time.Since(begun), s.disabledFor(),
				s.Docker("exec", "clock", "awk", "NR > 1 && $1 - last > most { most = $1 - last } { last = $1 } END { print most }", "/data/clock"))
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

// disabledFor returns how long the plugin was disabled the last time.
func (s *oneNode) disabledFor() time.Duration {
	s.t.Helper()
	var disabled, enabled int64
	events := s.Docker("events", "--since", "10m", "--until", "0s", "--filter", "type=plugin", "--format", "{{.TimeNano}} {{.Action}}")
	for event := range strings.Lines(events) {
		var at int64
		var action string
		_, err := fmt.Sscan(event, &at, &action)
		require.NoError(s.t, err)
		switch action {
		case "disable":
			disabled = at
		case "enable":
			enabled = at
		}
	}
	return time.Duration(enabled - disabled)
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

// Each time the update pauses, the log says why, and the plugin works as it did before.
func TestAnUpdateThatDoesNotWorkIsPausedAndTakenBack(t *testing.T) {
	if testing.Short() {
		t.Skip("one such update is in the test above")
	}
	t.Parallel()
	s := newOneNode(t, "1.0")
	broken := labelled(t, "1.1")
	require.NoError(t, os.Remove(filepath.Join(broken, "rootfs/usr/bin/blockvol")))
	require.NoError(t, os.WriteFile(filepath.Join(broken, "rootfs/usr/bin/blockvol"), []byte("no program"), 0o755))
	s.push("1.1", broken)
	s.settings("first", "LOG_LEVEL=debug")
	s.shell("echo '# none' | docker secret create blockvol-secrets -")
	s.deploy("1.0")
	s.awaitInstalled("1.0")
	create(s.Engine, "kept")
	startWriter(t, s.Engine, "kept")

	for i, test := range []struct{ version, setting, failed, why string }{
		{"1.0", "TAKEOVER=sometimes", "non-zero exit (5)", `TAKEOVER is "sometimes" but must be one of never, stopped, fence, always`},
		{"1.0", "PROVIDER=nowhere", "non-zero exit (5)", `PROVIDER is "nowhere" but must be one of`},
		{"1.0", "CLUSTR=shop", "non-zero exit (2)", "blockvol:1.0-amd64 has no setting CLUSTR"},
		{"1.1", "LOG_LEVEL=debug", "non-zero exit (5)", "blockvol:1.1-amd64 does not start"},
		{"1.2", "LOG_LEVEL=debug", "No such image", ""},
	} {
		s.settings("next-"+strconv.Itoa(i), test.setting)
		s.deploy(test.version)
		s.awaitPaused(test.failed, test.why)
		s.requirePlugin("1.0")
		assert.Contains(t, s.Docker("plugin", "inspect", "--format", "{{.Settings.Env}}", engine.Plugin), "LOG_LEVEL=debug")
		awaitLines(t, s.Engine, 10)
		create(s.Engine, "another-"+strconv.Itoa(i))
	}
	s.settings("last", "LOG_LEVEL=info")
	s.deploy("1.0")
	s.awaitUpdate("completed")
	assert.Contains(t, s.Docker("plugin", "inspect", "--format", "{{.Settings.Env}}", engine.Plugin), "LOG_LEVEL=info")
	awaitLines(t, s.Engine, 10)
	s.Docker("rm", "--force", "writer")
	eventuallyReleased(t, s.Engine)
	assertNothingLost(t, s.Engine, "kept")

	s.Docker("plugin", "disable", "--force", engine.Plugin)
	s.Docker("plugin", "rm", "--force", engine.Plugin)
	s.Eventually("it is installed again", func() error {
		enabled, err := s.Try("plugin", "inspect", "--format", "{{.Enabled}}", engine.Plugin)
		if err == nil && enabled != "true" {
			err = errors.New(enabled)
		}
		return err
	})
	assertNothingLost(t, s.Engine, "kept")
	eventuallyReleased(t, s.Engine)
}

func TestTheInstallerHasCredentialsForTheRegistry(t *testing.T) {
	if testing.Short() {
		t.Skip("it needs an engine of its own")
	}
	t.Parallel()
	s := newOneNode(t, "1.0")
	users := filepath.Join(s.Dir, "users")
	// The password is hunter2.
	require.NoError(t, os.WriteFile(users, []byte("me:$2b$04$6WALEcRh3EH41yPVsE9hreKCFN3AKokkxAXjVxGBtcfYGFrvcFoiu\n"), 0o600))
	serveRegistry(t, s.Engine, 5001, "auth: {htpasswd: {realm: test, path: "+users+"}}\n")
	s.Docker("login", "--username", "me", "--password", "hunter2", "127.0.0.1:5001") // for the image
	install := func(secrets string) (string, error) {
		file := filepath.Join(s.work, "secrets")
		require.NoError(t, os.WriteFile(file, []byte(secrets), 0o600))
		out, err := s.Client(t.Context(), "run", "--rm", "--network", "none", "--volume", "/var/run/docker.sock:/var/run/docker.sock",
			"--volume", "/run/docker/plugins:/run/docker/plugins", "--volume", file+":/run/secrets/blockvol-secrets:ro",
			"127.0.0.1:5001/blockvol-installer:1.0", "install").CombinedOutput()
		return string(out), err
	}
	out, err := install("# none\n")
	require.ErrorContains(t, err, "exit status 3")
	assert.Contains(t, out, "127.0.0.1:5001/blockvol:1.0-amd64 cannot be had: ")
	assert.Empty(t, s.Docker("plugin", "ls", "--quiet"))
	out, err = install("REGISTRY_USERNAME=me\nREGISTRY_PASSWORD=hunter2\n")
	require.NoError(t, err, out)
	assert.NotContains(t, out, "hunter2")
	s.requirePlugin("1.0")
}

// The kills are spread over the time of an update. cmd/installer has the same with each single step.
func TestTheInstallerIsKilledAtAnyMomentOfAnUpdate(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes minutes")
	}
	t.Parallel()
	s := newOneNode(t, "1.0", "1.1")
	install := func(version string) []string {
		return []string{
			"run", "--network", "none", "--volume", "/var/run/docker.sock:/var/run/docker.sock", "--volume", "/run/docker/plugins:/run/docker/plugins",
			"--name", "installer", s.registry + "/blockvol-installer:" + version, "install", "LOG_LEVEL=debug",
		}
	}
	s.Docker(install("1.0")...)
	s.Docker("rm", "installer")
	create(s.Engine, "kept")
	startWriter(t, s.Engine, "kept")
	killed := 0
	for kill := range 16 {
		version := []string{"1.1", "1.0"}[kill%2]
		s.Docker(slices.Insert(install(version), 1, "--detach")...)
		time.Sleep(time.Duration(kill) * 250 * time.Millisecond) // the kill happens at this time
		if _, err := s.Try("kill", "installer"); err == nil {
			killed++
		}
		s.Docker("rm", "--force", "installer")
		awaitLines(t, s.Engine, 10)
		s.Docker(install(version)...)
		s.Docker("rm", "installer")
		s.requirePlugin(version)
		awaitLines(t, s.Engine, 10)
		assert.Len(t, strings.Fields(s.Docker("plugin", "ls", "--quiet")), 1)
		assert.Len(t, strings.Fields(s.Docker("ps", "--all", "--quiet")), 1, "the writer")
	}
	t.Logf("%d of 16 were killed", killed)
	assert.Greater(t, killed, 5)
	s.Docker("rm", "--force", "writer")
	eventuallyReleased(t, s.Engine)
	assertNothingLost(t, s.Engine, "kept")
}
