package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/namespace"
	"github.com/blockvol/blockvol/test/violation"
)

// Tests of events in the life of the plugin.

func TestPluginIsKilledUnderAWritingContainer(t *testing.T) {
	e := start(t)
	create(e, "diary")
	startWriter(t, e, "diary")
	for range 5 {
		e.KillPlugin()
		awaitLines(t, e, 10)
	}
	e.Docker("stop", "--time", "0", "writer")
	assert.Empty(t, e.Docker("logs", "writer"))
	e.Docker("rm", "writer")
	eventuallyReleased(t, e)
	assertNothingLost(t, e, "diary")
}

// The kills are spread over the time of a mount. The first mount of each volume formats it.
func TestPluginIsKilledAtAnyMomentOfAMount(t *testing.T) {
	e := start(t)
	written := map[string][]string{} // files whose containers have ended without an error, by volume
	for kill := range 25 {
		volume, word := fmt.Sprintf("volume-%d", kill%5), fmt.Sprintf("word-%d", kill)
		if kill < 5 {
			create(e, volume)
		}
		pid := e.SettledPluginPID()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		run := e.Client(ctx, "run", "--rm", "--volume", volume+":/data", "busybox", "sh", "-ec", "echo "+word+" >>/data/log")
		require.NoError(t, run.Start())
		time.Sleep(time.Duration(kill) * 20 * time.Millisecond) // the kill happens at this time
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		if run.Wait() == nil {
			written[volume] = append(written[volume], word)
		}
		cancel()
		var log string
		e.Eventually("the volume can be mounted again", func() (err error) {
			log, err = e.Try("run", "--rm", "--volume", volume+":/data", "busybox", "sh", "-ec", "touch /data/log; cat /data/log")
			return err
		})
		require.Subset(t, strings.Fields(log), written[volume], violation.Textf("words are lost after kill %d", kill))
	}
	assert.NotEmpty(t, written, "no container has run; all kills were too early")
	eventuallyReleased(t, e)
}

// Afterwards dockerd's own mount is gone, but the container still uses its private one.
func TestPluginIsDisabledByForceUnderAWritingContainer(t *testing.T) {
	e := start(t)
	create(e, "kept")
	startWriter(t, e, "kept")
	e.Docker("plugin", "disable", "--force", engine.Plugin)
	awaitLines(t, e, 10)
	e.Docker("plugin", "enable", engine.Plugin)
	awaitLines(t, e, 10)
	loops, err := namespace.Loops(e.Volumes)
	require.NoError(t, err)
	require.Len(t, loops, 1, "a disk that a container writes to stays attached")
	e.Docker("rm", "--force", "writer")
	eventuallyReleased(t, e)
	assertNothingLost(t, e, "kept")
}

// The registry is Debian's docker-registry on the engine's loopback.
func TestInstallAndUpgradeFromARegistry(t *testing.T) {
	e := start(t)
	registry := startRegistry(t, e)
	create(e, "kept")
	once(e, "kept", "echo before >/data/marker")
	e.Docker("plugin", "disable", "--force", engine.Plugin)
	e.Docker("plugin", "rm", "--force", engine.Plugin)
	pushed := map[string]string{}
	for _, version := range []string{"1", "2"} {
		name, digest, found := strings.Cut(push(t, e, registry, version), "@")
		require.True(t, found)
		assert.Regexp(t, "^sha256:[0-9a-f]{64}$", digest) // dockerd 20.10 crashes when it is to install a plugin by its digest
		pushed[version] = name
	}
	assert.Equal(t, "[]", "["+e.Docker("plugin", "ls", "--quiet")+"]", "none is left in the engine")
	sources := []string{"state.source=" + e.State, "volumes.source=" + e.Volumes}

	e.Docker(append([]string{"plugin", "install", "--grant-all-permissions", "--alias", "blockvol", pushed["1"], "CLUSTER=default", "LOG_LEVEL=debug"}, sources...)...)
	assert.Equal(t, "before", once(e, "kept", "cat /data/marker"), "volumes survive the plugin's upgrade")

	e.Docker("plugin", "disable", "--force", engine.Plugin)
	e.Docker("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", engine.Plugin, pushed["2"]) // another tag
	e.Docker(append([]string{"plugin", "set", engine.Plugin}, sources...)...)                                   // Docker has reset them
	e.Docker("plugin", "enable", engine.Plugin)
	assert.Contains(t, e.Docker("plugin", "inspect", "--format", "{{.Config.Description}}", engine.Plugin), "version 2")
	assert.Contains(t, e.Docker("plugin", "inspect", "--format", "{{.Settings.Env}}", engine.Plugin), "LOG_LEVEL=debug")
	assert.Equal(t, "before", once(e, "kept", "cat /data/marker"))
	eventuallyReleased(t, e)
}

// push pushes a release that has one plugin, as `make push` does, and returns what that prints.
func push(t *testing.T, e *engine.Engine, registry, version string) string {
	t.Helper()
	dir := t.TempDir()
	name := "blockvol-" + version + "-plugin-" + runtime.GOARCH
	const script = `
		cp --archive "$1" "$2/$3"
		tar --create --gzip --file "$2/$3.tar.gz" --directory "$2" "$3"
		exec ../../scripts/push "$4" "$2"`
	cmd := exec.Command("sh", "-ec", script, "sh", e.Grantable(labelled(t, version)), dir, name, registry)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}

// labelled returns a copy of the plugin with a version label.
func labelled(t *testing.T, version string) string {
	t.Helper()
	dir := copyPlugin(t)
	file := filepath.Join(dir, "config.json")
	config, err := os.ReadFile(file)
	require.NoError(t, err)
	changed := strings.Replace(string(config), `"description": "`, `"description": "version `+version+`: `, 1)
	require.NotEqual(t, string(config), changed)
	require.NoError(t, os.WriteFile(file, []byte(changed), 0o600))
	return dir
}

func copyPlugin(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plugin")
	out, err := exec.Command("cp", "--archive", pluginDir, dir).CombinedOutput()
	require.NoError(t, err, string(out))
	return dir
}

func startRegistry(t *testing.T, e *engine.Engine) (address string) {
	t.Helper()
	serveRegistry(t, e, 5000, "")
	return "127.0.0.1:5000" // in the engine's own network
}

// serveRegistry starts a registry on a port of the engine's loopback. All registries of an engine have the same content.
func serveRegistry(t *testing.T, e *engine.Engine, port int, more string) {
	t.Helper()
	config := filepath.Join(e.Dir, fmt.Sprintf("registry-%d.yml", port))
	const text = "version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: '127.0.0.1:%d'}\n%s"
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, text, filepath.Join(e.Dir, "registry"), port, more), 0o600))
	e.Spawn("docker-registry", "serve", config)
	e.Eventually("the registry listens", func() error {
		listening, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", e.PID()))
		if err == nil && !strings.Contains(string(listening), fmt.Sprintf("0100007F:%04X 00000000:0000 0A", port)) {
			err = errors.New("not yet")
		}
		return err
	})
}

func TestReinstallKeepsSettingsAndVolumes(t *testing.T) {
	e := start(t)
	create(e, "kept")
	startWriter(t, e, "kept")
	out, err := install(e, "DEFAULT_FSTYPE=xfs")
	require.Error(t, err, "a volume is in use")
	assert.Contains(t, out, "volume kept is in use by writer")
	awaitLines(t, e, 10)

	e.Docker("rm", "--force", "writer")
	out, err = install(e, "DEFAULT_FSTYPE=xfs")
	require.NoError(t, err, out)
	env := e.Docker("plugin", "inspect", "--format", "{{.Settings.Env}}", engine.Plugin)
	assert.Contains(t, env, "LOG_LEVEL=debug")
	assert.Contains(t, env, "DEFAULT_FSTYPE=xfs")
	assertNothingLost(t, e, "kept")
	eventuallyReleased(t, e)
}

func TestFlagsArePassedInArgs(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	const flags = "args=--sysfs=/sys --state=/data/state/further"
	e.InstallPlugin(pluginDir, flags)
	create(e, "any")
	journal := filepath.Join(e.State, "further", "journal")
	assert.DirExists(t, journal)
	require.NoError(t, os.RemoveAll(filepath.Dir(journal)))

	out, err := install(e)
	require.NoError(t, err, out)
	assert.Contains(t, flags, e.Docker("plugin", "inspect", "--format", `{{join .Settings.Args " "}}`, engine.Plugin))
	assert.DirExists(t, journal, "they are kept when the plugin is replaced")

	e.Docker("plugin", "disable", "--force", engine.Plugin)
	e.Docker("plugin", "set", engine.Plugin, "args=")
	e.Docker("plugin", "enable", engine.Plugin)
	assert.DirExists(t, filepath.Join(e.State, "journal"))
}

// install runs scripts/install, as `make install` does.
func install(e *engine.Engine, settings ...string) (output string, err error) {
	cmd := exec.Command("../../scripts/install", append([]string{pluginDir}, settings...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "BLOCKVOL_BIN="+filepath.Join(e.Dir, "bin"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}
