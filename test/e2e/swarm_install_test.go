package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/engine"
)

// oneNode is a Swarm of one node, whose registry has versions of the plugin and of its installer.
type oneNode struct {
	*engine.Engine
	t        *testing.T
	registry string
}

// newSwarmOfOne gives the host of an engine empty directories /var/lib/blockvol and /usr/local/bin of its own.
func newSwarmOfOne(t *testing.T, versions ...string) *oneNode {
	t.Helper()
	e := engine.Start(t, engine.Arguments("--host=unix:///run/docker.sock"))
	e.Run("sh", "-ec", `
		mount -t tmpfs none /var/lib
		mount -t tmpfs none /usr/local/bin
		mkdir /var/lib/blockvol
		mount --bind "$1" /var/lib/blockvol`, "sh", e.Dir)
	e.Busybox()
	s := &oneNode{e, t, startRegistry(t, e)}
	image := filepath.Join(e.Dir, "installer.tar")
	out, err := exec.Command("../../scripts/installer", "amd64", image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, version := range versions {
		s.push(version, image)
	}
	e.Docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
	return s
}

func (s *oneNode) push(version, image string) {
	s.t.Helper()
	plugin := s.registry + "/blockvol:" + version + "-amd64"
	s.Docker("plugin", "create", plugin, s.Grantable(labelled(s.t, version)))
	s.Docker("plugin", "push", plugin)
	s.Docker("plugin", "rm", plugin)
	installer := s.registry + "/blockvol-installer:" + version
	s.Docker("import", "--change", `ENTRYPOINT ["/installer"]`, image, installer)
	s.Docker("push", "--quiet", installer)
}

// deploy deploys the stack file that is shipped.
func (s *oneNode) deploy(version string) {
	s.t.Helper()
	cmd := s.Client(s.t.Context(), "stack", "deploy", "--compose-file", "../../scripts/blockvol.yml", "blockvol")
	cmd.Env = append(cmd.Env, "REGISTRY="+s.registry, "VERSION="+version)
	out, err := cmd.CombinedOutput()
	require.NoError(s.t, err, "%s", out)
}

// awaitInstalled waits until the installer's task is healthy.
func (s *oneNode) awaitInstalled(version string) {
	s.t.Helper()
	s.Eventually("the installer is healthy", func() error {
		all := s.Docker("service", "ps", "--no-trunc", "--format", "{{.Image}} {{.CurrentState}} {{.Error}}", "blockvol_installer")
		for line := range strings.Lines(all) {
			if strings.Contains(line, "blockvol-installer:"+version) && strings.Contains(line, " Running ") {
				return nil
			}
		}
		return errors.New(all)
	})
}

func TestAStackInstallsAndUpdatesThePlugin(t *testing.T) {
	t.Parallel()
	s := newSwarmOfOne(t, "1.0", "1.1")
	config := filepath.Join(s.Dir, "settings")
	require.NoError(t, os.WriteFile(config, []byte("# of the test\nLOG_LEVEL=debug\n"), 0o600))
	s.Docker("config", "create", "blockvol-settings", config)
	require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf("PEER_KEY=%064d\n", 1)), 0o600))
	s.Docker("secret", "create", "blockvol-secrets", config)
	s.deploy("1.0")
	defer func() {
		if t.Failed() {
			out, err := s.Try("service", "logs", "blockvol_installer")
			t.Log(out, err)
		}
	}()
	s.awaitInstalled("1.0")
	assert.Contains(t, s.Docker("plugin", "inspect", "--format", "{{.Config.Description}} {{.Settings.Env}}", engine.Plugin), "version 1.0")
	create(s.Engine, "kept")
	startWriter(t, s.Engine, "kept")

	s.deploy("1.1")
	s.awaitInstalled("1.1")
	assert.Contains(t, s.Docker("plugin", "inspect", "--format", "{{.Config.Description}}", engine.Plugin), "version 1.1")
	awaitLines(t, s.Engine, 10)
	s.Docker("rm", "--force", "writer")
	eventuallyReleased(t, s.Engine)
	assertNothingLost(t, s.Engine, "kept")
}
