package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/plugin/engine"
)

func written(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "settings")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestSettingsAreLines(t *testing.T) {
	all, err := readSettings(written(t, "# a comment\n\nCLUSTER = blue\r\nargs=--copy-up-probe=1s --sysfs=/sys\nHTTPS_PROXY=\n"))
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"CLUSTER": "blue", "args": "--copy-up-probe=1s --sysfs=/sys", "HTTPS_PROXY": ""}, all)
	all, err = readSettings(filepath.Join(t.TempDir(), "none"))
	require.NoError(t, err)
	assert.Empty(t, all)

	for text, why := range map[string]string{
		"CLUSTER=a\nhunter2":                   "line 2 of ",
		"=hunter2":                             "is not NAME=VALUE",
		"HCLOUD_TOKEN=1\nHCLOUD_TOKEN=hunter2": "sets HCLOUD_TOKEN a second time",
	} {
		_, err := readSettings(written(t, text))
		require.ErrorContains(t, err, why)
		assert.NotContains(t, err.Error(), "hunter2", "it may be a secret")
	}
}

func TestCredentialsForTheRegistryAreNotThePlugins(t *testing.T) {
	secrets := map[string]string{"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "hunter2", "HCLOUD_TOKEN": "x"}
	auth, err := takeAuth(secrets, "registry.example.com/a/blockvol:1-amd64")
	require.NoError(t, err)
	assert.Equal(t, &engine.RegistryAuth{Username: "me", Password: "hunter2", ServerAddress: "registry.example.com"}, auth)
	assert.Equal(t, map[string]string{"HCLOUD_TOKEN": "x"}, secrets)
	i := &installer{auth: auth}
	assert.Equal(t, auth, i.authFor("registry.example.com/b/blockvol:2-amd64"))
	assert.Nil(t, i.authFor("registry.example.org/a/blockvol:1-amd64"), "no other registry is told them")
	auth, err = takeAuth(secrets, "r/blockvol:1")
	require.NoError(t, err)
	assert.Nil(t, auth)
	_, err = takeAuth(map[string]string{"REGISTRY_USERNAME": "me"}, "r/blockvol:1")
	require.ErrorContains(t, err, "needs both REGISTRY_USERNAME and REGISTRY_PASSWORD")
}

func TestASettingIsNotASecretToo(t *testing.T) {
	secrets := map[string]string{"HCLOUD_TOKEN": "hunter2"}
	require.NoError(t, twice(map[string]string{"CLUSTER": "a"}, secrets))
	for _, name := range []string{"HCLOUD_TOKEN", "HCLOUD_TOKEN_FILE"} {
		require.EqualError(t, twice(map[string]string{name: "a"}, secrets), "the settings have "+name+", and the secrets have HCLOUD_TOKEN: leave one of them out")
	}
}

func TestTheImagesNameTellsWhereThePluginIs(t *testing.T) {
	for image, reference := range map[string]string{
		"registry.example.com/blockvol-installer:1.0":                "registry.example.com/blockvol:1.0-arm64",
		"127.0.0.1:5000/team/blockvol-installer:1.0@sha256:0123abcd": "127.0.0.1:5000/team/blockvol:1.0-arm64",
		"localhost/blockvol-installer:1.0-arm64":                     "localhost/blockvol:1.0-arm64",
		"example/blockvol-installer:1.0":                             "docker.io/example/blockvol:1.0-arm64",
		"docker.io/example/blockvol-installer:1.0":                   "docker.io/example/blockvol:1.0-arm64",
		"blockvol-installer:1.0":                                     "docker.io/library/blockvol:1.0-arm64",
	} {
		got, err := pluginOf(image, "arm64")
		require.NoError(t, err)
		assert.Equal(t, reference, got, image)
	}
	for _, image := range []string{"sha256:0123abcd", "registry:5000/blockvol-installer", "registry/other:1"} {
		_, err := pluginOf(image, "arm64")
		require.ErrorContains(t, err, "call it REGISTRY/blockvol-installer:VERSION", image)
	}
}

func TestThePluginIsGrantedWhatItAsksForAndNoMore(t *testing.T) {
	var c struct {
		Network struct{ Type string }
		Linux   struct {
			Capabilities    []string
			AllowAllDevices bool
		}
		Mounts []struct{ Source string }
	}
	text, err := os.ReadFile("../../config.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &c))
	asked := map[string][]string{"network": {c.Network.Type}, "capabilities": c.Linux.Capabilities}
	for _, m := range c.Mounts {
		asked["mount"] = append(asked["mount"], m.Source)
	}
	if c.Linux.AllowAllDevices {
		asked["allow-all-devices"] = []string{"true"}
	}
	assert.Equal(t, asked, granted)

	page, err := os.ReadFile("../../docs/install.md")
	require.NoError(t, err)
	_, table, _ := strings.Cut(string(page), "## Privileges")
	for _, name := range append([]string{"CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"}, granted["mount"]...) {
		assert.Contains(t, table, name)
	}
}

func plugin1(settings ...string) (p engine.Plugin) {
	p.Reference = "r/blockvol:1-amd64"
	for _, name := range []string{"CLUSTER", "HCLOUD_TOKEN", "HCLOUD_TOKEN_FILE", "LOG_LEVEL"} {
		p.Config.Env = append(p.Config.Env, engine.PluginSetting{Name: name})
	}
	p.Config.Args.Name = "args"
	p.Config.Mounts = []engine.PluginMount{{Name: "dev"}, {Name: "state", Settable: []string{"source"}}}
	p.Settings.Mounts = []engine.PluginMount{{Name: "dev", Source: "/dev"}, {Name: "state", Source: "/s", Settable: []string{"source"}}}
	p.Settings.Env = settings
	return p
}

func TestSettingsMadeByHandAreKept(t *testing.T) {
	i := &installer{reference: "r/blockvol:1-amd64", settings: map[string]string{"CLUSTER": "blue", "args": "", "state.source": "/s"}}
	p := plugin1("CLUSTER=red", "LOG_LEVEL=debug", "HCLOUD_TOKEN=x")
	assert.Equal(t, []string{"CLUSTER=blue"}, i.targetOf(record{}, nil).missing(p))
	assert.Equal(t, []string{"CLUSTER=blue", "LOG_LEVEL="}, i.targetOf(record{Set: []string{"CLUSTER", "LOG_LEVEL"}}, nil).missing(p), "those of an earlier target are not")
	assert.Equal(t, []string{"CLUSTER=blue", "HCLOUD_TOKEN=", "HCLOUD_TOKEN_FILE=/data/state/secrets/HCLOUD_TOKEN.a"},
		i.targetOf(record{}, map[string]string{"HCLOUD_TOKEN": "HCLOUD_TOKEN.a"}).missing(p), "a secret takes the place of a setting")
}

func TestUnknownSettingsAreFoundBeforeThePluginIsDisabled(t *testing.T) {
	p := plugin1()
	assert.Equal(t, []string{"CLUSTR", "LOG_LEVEL_FILE", "dev.source"}, unknown(p, map[string]string{
		"CLUSTER": "a", "CLUSTR": "a", "args": "--x", "state.source": "/s", "dev.source": "/dev", "LOG_LEVEL_FILE": "/f", "GONE": "",
	}))
}

func TestSecretsKeepTheirFilesUntilTheyChange(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	first, err := keepSecrets(dir, map[string]string{"A": "1", "B": "2"})
	require.NoError(t, err)
	second, err := keepSecrets(dir, map[string]string{"A": "1", "B": "3"})
	require.NoError(t, err)
	assert.Equal(t, first["A"], second["A"])
	assert.NotEqual(t, first["B"], second["B"])
	text, err := os.ReadFile(filepath.Join(dir, first["B"]))
	require.NoError(t, err)
	assert.Equal(t, "2\n", string(text), "what is in use stays until the new one works")
	info, err := os.Stat(filepath.Join(dir, second["B"]))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())

	require.NoError(t, removeExcept(dir, []string{second["A"], second["B"]}))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, 2)
	require.NoError(t, removeExcept(dir, []string{}))
	assert.NoDirExists(t, dir)
	require.NoError(t, removeExcept(dir, []string{}))
}

// tree makes files, and directories where a name ends with a slash.
func tree(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(path, 0o700))
			continue
		}
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}
	return dir
}

func TestUninstallKeepsLinksToOtherDisks(t *testing.T) {
	dir := tree(t, "big/volumes/1.img", "big/state/journal/", "big/state/node", "base/")
	for _, name := range []string{"volumes", "state"} {
		require.NoError(t, os.Symlink(filepath.Join(dir, "big", name), filepath.Join(dir, "base", name)))
	}
	require.NoError(t, clean(dir+"/base", dir+"/base/state", dir+"/base/state", dir+"/bin"))
	assert.FileExists(t, dir+"/base/volumes/1.img")
	_, err := os.Stat(dir + "/base/state/.")
	require.NoError(t, err)
	assert.NoFileExists(t, dir+"/big/state/node")
}

func TestUninstallKeepsTheNodesIDWhileTheJournalHasVolumes(t *testing.T) {
	dir := tree(t, "state/journal/shop.json", "state/node", "state/lock", "state/secrets/TOKEN.a")
	require.NoError(t, clean(dir, dir+"/state", dir+"/state", dir+"/bin"))
	assert.FileExists(t, dir+"/state/node")
	assert.FileExists(t, dir+"/state/journal/shop.json")
	assert.NoDirExists(t, dir+"/state/secrets")
}

func TestUninstallLeavesTheStateOfARunningDaemon(t *testing.T) {
	dir := tree(t, "state/journal/", "state/node", "state/lock")
	lock, err := os.Open(dir + "/state/lock")
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	require.ErrorContains(t, clean(dir, dir+"/state", dir+"/state", dir+"/bin"), "another blockvol serves volumes with this state directory: stop it first")
	assert.FileExists(t, dir+"/state/node")
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	require.NoError(t, clean(dir, dir+"/state", dir+"/state", dir+"/bin"))
	assert.NoDirExists(t, dir+"/state")
}
