package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/manual"
)

// The commands of README.md and docs/, run as they stand there.

// elsewhere are commands that no engine runs: test/cloud/fronts runs those of aws, hcloud and openstack on simulated clouds. The
// others are for what is not here: clients that Debian does not have, an identity service, systemd.
var elsewhere = []string{
	"aws ", "hcloud ", "openstack volume ",
	"doctl ", "linode-cli ", "openstack application credential create ", "systemctl ",
}

// reader is somebody who follows the manual on the host of an engine.
type reader struct {
	*engine.Engine
	t    *testing.T
	work string // the working directory: the repository, as far as the manual needs it

	cloud []string // settings that lead the plugin to a simulated cloud, in place of the page's of the same name
}

// newReader gives the host of an engine the directory /var/lib/blockvol, which is the engine's own.
func newReader(t *testing.T, e *engine.Engine) *reader {
	t.Helper()
	r := &reader{Engine: e, t: t, work: filepath.Join(e.Dir, "work")}
	scripts, err := filepath.Abs("../../scripts")
	require.NoError(t, err)
	r.Run("sh", "-ec", `
		mount -t tmpfs none /var/lib
		mkdir -p /var/lib/blockvol "$1/build/plugin" "$1/bin" "$1/usr/bin" "$1/etc/systemd/system"
		mount --bind "$2" /var/lib/blockvol
		mount --bind "$3" "$1/build/plugin"
		ln -s plugin/rootfs/usr/bin/blockvol "$1/build/blockvol"
		ln -s "$4" "$1/scripts"`,
		"sh", r.work, e.Dir, e.Grantable(absolute(t, pluginDir)), scripts)
	return r
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	return path
}

// shell runs a command that a reader types, who answers each question with yes.
func (r *reader) shell(command string) string {
	r.t.Helper()
	r.t.Logf("$ %s", command)
	return r.Run("sh", "-c", `cd "$1" && yes | PATH="$1/bin:$PATH" BLOCKVOL_BIN="$1/bin" DOCKER_HOST="$2" DOCKER_CONTEXT= DOCKER_CONFIG="$3" sh -ec "$4"`,
		"sh", r.work, r.Host(), filepath.Join(r.Dir, "client"), command)
}

// follow runs one line of the manual, unless that is for another test.
func (r *reader) follow(line string) {
	r.t.Helper()
	line = strings.NewReplacer("REGISTRY", "127.0.0.1:5000", "-amd64", "-"+runtime.GOARCH).Replace(line)
	line = strings.NewReplacer(" /usr/bin/", " usr/bin/", " /etc/", " etc/").Replace(line) // the host's are the machine's
	switch {
	case slices.ContainsFunc(elsewhere, func(prefix string) bool { return strings.HasPrefix(line, prefix) }):
	case strings.HasPrefix(line, "make push "):
		r.remove() // Docker does not make the same plugin twice
		push(r.t, r.Engine, "127.0.0.1:5000", "1.0")
	case strings.HasPrefix(line, "make "):
		// What is built is there. TestFurtherFlagsAreTakenAsArgs and others install as `make install` does, over and over.
		out, err := exec.Command("sh", "-ec", "cd ../..; "+strings.Replace(line, "make ", "make --no-print-directory --dry-run ", 1)).CombinedOutput()
		require.NoError(r.t, err, "%s: %s", line, out)
		if strings.HasPrefix(line, "make install") {
			install := string(out)[strings.LastIndex(string(out), "scripts/install"):]
			r.shell(strings.TrimSpace(install) + " LOCAL_OVERCOMMIT=true") // this machine's disk may be small
		}
	case strings.HasPrefix(line, "go run "):
		out, err := exec.Command("sh", "-ec", "cd ../..; "+line).CombinedOutput()
		require.NoError(r.t, err, "%s: %s", line, out)
	case strings.HasPrefix(line, "docker plugin install ") && r.cloud != nil:
		r.installOn(line)
	case strings.HasPrefix(line, "docker plugin install "):
		r.remove() // the manual shows more than one way to install
		r.shell(line + " LOCAL_OVERCOMMIT=true")
	default:
		if strings.HasPrefix(line, "docker stack deploy ") {
			awaitPluginInSwarm(r.Engine)
		}
		r.shell(line)
	}
}

// installOn installs the plugin with the settings of the line, and without the registry, which the README's commands are run with.
func (r *reader) installOn(line string) {
	r.t.Helper()
	var settings []string
	for _, word := range strings.Fields(line) {
		name, _, isSetting := strings.Cut(word, "=")
		replaced := slices.ContainsFunc(r.cloud, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		if isSetting && !replaced {
			settings = append(settings, word)
		}
	}
	r.InstallPlugin(pluginDir, append(settings, r.cloud...)...)
}

// remove removes the plugin if there is one.
func (r *reader) remove() {
	_, _ = r.Try("plugin", "disable", "--force", engine.Plugin)
	_, _ = r.Try("plugin", "rm", "--force", engine.Plugin)
}

// The pages are read one after the other, as a user would who has one machine.
func TestTheCommandsOfTheManualWork(t *testing.T) {
	t.Parallel()
	images := absolute(t, "../../build/containers")
	out, err := exec.Command("../cluster/image/containers", images).CombinedOutput()
	require.NoError(t, err, "%s", out)
	e := engine.Start(t)
	r := newReader(t, e)
	e.Docker("tag", e.Busybox(), "debian:12")
	e.Docker("load", "--quiet", "--input", filepath.Join(images, "postgres.tar"))
	e.Docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
	registry := startRegistry(t, e)
	push(t, e, registry, "1.1")
	compose, err := manual.Stack("../../README.md")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(r.work, "compose.yaml"), []byte(compose), 0o600))

	r.read("README.md")
	e.Eventually("PostgreSQL answers", func() error {
		task, err := e.Try("ps", "--quiet", "--filter", "name=shop_db.")
		if err == nil {
			_, err = e.Try("exec", task, "pg_isready", "--quiet", "--host=127.0.0.1")
		}
		return err
	})
	for _, page := range []string{"options", "settings", "swarm", "operations", "cli", "snapshots", "api", "failover", "migrate"} {
		r.read("docs/" + page + ".md")
	}
	e.Docker("stack", "rm", "shop")
	e.Docker("service", "rm", "cache")
	eventuallyReleased(t, e)
	r.read("docs/local.md")
	r.read("docs/install.md")
	assert.Empty(t, e.Docker("plugin", "ls", "--quiet"), "it ends with the removal")
}

// read follows a page.
func (r *reader) read(page string) {
	r.t.Helper()
	lines, err := manual.Commands("../../" + page)
	require.NoError(r.t, err)
	require.NotEmpty(r.t, lines, page)
	for _, line := range lines {
		r.follow(line)
	}
}

func TestInstallingOnACloudAsItsPageSays(t *testing.T) {
	t.Parallel()
	for _, kind := range fronts.All {
		t.Run(kind.Provider, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && kind.Provider != fronts.All[0].Provider {
				t.Skip("the pages of the others differ in names")
			}
			a := openAccount(t, kind)
			e, id := engine.Start(t), a.AddInstance(kind.Instance).ID
			r := newReader(t, e)
			require.NoError(t, a.disks.Sysfs(id, filepath.Join(e.State, "sysfs")))
			api, metadata := serve(t, e, "127.0.0.1:0", a.front), serve(t, e, "127.0.0.1:0", a.front.Metadata(id))
			r.cloud = []string{"args=--sysfs=/data/state/sysfs"}
			for _, setting := range kind.Settings(a.front, id, "http://"+api, "http://"+metadata) {
				name, value, _ := strings.Cut(setting, "=")
				word := strings.ToLower(name[strings.LastIndex(name, "_")+1:])
				if word == "token" || word == "secret" { // the page has it in a file of that name
					require.NoError(t, os.WriteFile(filepath.Join(r.work, word), []byte(value+"\n"), 0o600))
					continue
				}
				r.cloud = append(r.cloud, setting)
			}
			r.read("docs/" + kind.Provider + ".md")
			require.Len(t, fronts.Disks(a.Cloud), 1, "the page creates a volume")
			e.Busybox()
			once(e, "data", "echo hello >/data/file")
			s := &server{e, id, a}
			s.eventuallyReleased()
			e.Docker("volume", "rm", "data")
		})
	}
}
