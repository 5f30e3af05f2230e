package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/plugin/engine"
)

const (
	one  = "registry:5000/blockvol:1-amd64"
	two  = "registry:5000/blockvol:2-amd64"
	dead = "registry:5000/blockvol:3-amd64" // does not start
)

func withVersions(t *testing.T) *fakeEngine {
	t.Helper()
	f := newFakeEngine(t)
	env := []string{"PROVIDER", "LEVEL", "CLUSTER", "TOKEN", "TOKEN_FILE"}
	privileges := []engine.Privilege{{Name: "network", Value: []string{"host"}}, {Name: "mount", Value: []string{"/dev"}}}
	f.registry[one] = version{append(env, "OLD"), true, privileges}
	f.registry[two] = version{append(env, "NEW"), true, privileges}
	f.registry[dead] = version{env, false, privileges}
	return f
}

func codeOf(err error) int {
	if f, is := errors.AsType[*failure](err); is {
		return f.code
	}
	return 0
}

// The installer dies at each of its changes, before or after it is made, and the next one goes on. In the end the plugin is enabled,
// as the target has it or as it was before.
func TestTheInstallerIsKilledAtAnyStep(t *testing.T) {
	by := map[string]string{"LEVEL": "debug", "state.source": "/data/state"} // the state directory is not the usual one
	for _, test := range []struct {
		name      string
		from      string // "": nothing is installed
		to        string
		settings  map[string]string
		reference string // in the end
		level     string
		code      int
	}{
		{"install", "", one, by, one, "debug", 0},
		{"update", one, two, map[string]string{"LEVEL": "debug"}, two, "debug", 0},
		{"settings", one, one, map[string]string{"LEVEL": "info"}, one, "info", 0},
		{"update and settings", one, two, map[string]string{"LEVEL": "info", "NEW": "1"}, two, "info", 0},
		{"update with the same settings", one, two, by, two, "debug", 0},
		{"update does not start", one, dead, by, one, "debug", codeKept},
		{"update serves nothing", one, two, map[string]string{"PROVIDER": "wrong"}, one, "debug", codeKept},
		{"setting is ignored", one, one, map[string]string{"LEVEL": "wrong"}, one, "debug", codeKept},
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %v", test.name, after), func(t *testing.T) {
				for cut := 1; ; cut++ {
					f := withVersions(t)
					if test.from != "" {
						require.NoError(t, f.installer(test.from, by).apply(t.Context()))
					}
					f.dieAt(cut, after)
					err := f.installer(test.to, maps.Clone(test.settings)).apply(t.Context())
					if f.hasDied() {
						err = f.installer(test.to, maps.Clone(test.settings)).apply(t.Context())
					} else if cut > f.changed() {
						require.Equal(t, test.code, codeOf(err), "%v", err)
						require.Greater(t, cut, 15, "these are the steps")
						return
					}
					if test.code == 0 {
						require.NoError(t, err, "killed at %d", cut)
					} else {
						require.Equal(t, test.code, codeOf(err), "killed at %d: %v", cut, err)
					}
					reference, enabled, settings := f.state()
					require.True(t, enabled, "killed at %d", cut)
					require.Equal(t, test.reference, reference, "killed at %d", cut)
					require.Equal(t, test.level, settings["LEVEL"], "killed at %d", cut)
					require.Equal(t, "/data/state", settings["state.source"], "killed at %d", cut)
					require.Equal(t, "/var/lib/blockvol/volumes", settings["volumes.source"], "killed at %d", cut)
					require.Empty(t, f.jobs, "killed at %d", cut)
					require.Empty(t, settings["TOKEN"])
					secret, err := os.ReadFile(f.host(settings["TOKEN_FILE"]))
					require.NoError(t, err, "killed at %d", cut)
					require.Equal(t, "hunter2\n", string(secret))
					if test.code == 0 {
						require.Len(t, f.plugins, 1, "killed at %d", cut)
						secrets, err := os.ReadDir(f.host("/data/state/secrets"))
						require.NoError(t, err)
						require.Len(t, secrets, 1, "killed at %d", cut)
						require.NoDirExists(t, f.host("/var/lib/blockvol/state"), "killed at %d", cut)
						program, err := os.ReadFile(f.host("/usr/local/bin/blockvol"))
						require.NoError(t, err)
						require.Equal(t, "program", string(program))
					}
				}
			})
		}
	}
}

func TestAPluginInstalledByHandIsTakenOver(t *testing.T) {
	f := withVersions(t)
	require.NoError(t, f.installer(one, map[string]string{"state.source": "/elsewhere"}).apply(t.Context()))
	require.NoError(t, os.RemoveAll(f.host("/var/lib/blockvol/installer")))
	f.plugins[plugin].Settings.Env = []string{"CLUSTER=blue", "OLD=1", "TOKEN=hunter1"}
	f.plugins[plugin].Reference = "docker.io/library/blockvol:latest"
	require.NoError(t, f.installer(two, map[string]string{"LEVEL": "debug"}).apply(t.Context()))
	reference, enabled, settings := f.state()
	assert.Equal(t, two, reference)
	assert.True(t, enabled)
	file := settings["TOKEN_FILE"]
	assert.Regexp(t, "^/data/state/secrets/TOKEN.[a-z2-7]{8}$", file)
	delete(settings, "TOKEN_FILE")
	assert.Equal(t, map[string]string{
		"CLUSTER": "blue", "OLD": "1", "LEVEL": "debug", "state.source": "/elsewhere", "volumes.source": "/var/lib/blockvol/volumes",
	}, settings)
	assert.FileExists(t, f.host(strings.Replace(file, "/data/state", "/elsewhere", 1)))

	// What the installer has set, it takes back.
	require.NoError(t, f.installer(two, nil).apply(t.Context()))
	_, _, settings = f.state()
	assert.Empty(t, settings["LEVEL"])
	assert.Equal(t, "blue", settings["CLUSTER"])
}

func TestNothingIsTouchedWithoutNeed(t *testing.T) {
	for _, test := range []struct {
		what, to string
		settings map[string]string
		code     int
		why      string
	}{
		{"nothing is changed", one, nil, 0, ""},
		{"the registry does not have it", "registry:5000/blockvol:4-amd64", nil, codeRegistry, "registry:5000/blockvol:4-amd64 cannot be had: connection refused"},
		{"a setting that it does not have", two, map[string]string{"OLD": "1", "CLUSTR": "a"}, codeSettings, "blockvol:2-amd64 has no setting CLUSTR, OLD"},
		{"a privilege", "registry:5000/blockvol:5-amd64", nil, codePrivilege, `asks for the privilege "true" of host pid namespace`},
	} {
		t.Run(test.what, func(t *testing.T) {
			f := withVersions(t)
			f.registry["registry:5000/blockvol:5-amd64"] = version{nil, true, []engine.Privilege{{Name: "host pid namespace", Value: []string{"true"}}}}
			require.NoError(t, f.installer(one, nil).apply(t.Context()))
			f.plugins[plugin].Config.Env = append(f.plugins[plugin].Config.Env, engine.PluginSetting{Name: "kept as it is"})
			before := *f.plugins[plugin]
			err := f.installer(test.to, test.settings).apply(t.Context())
			if test.code == 0 {
				require.NoError(t, err)
			} else {
				require.Equal(t, test.code, codeOf(err))
				require.ErrorContains(t, err, test.why)
			}
			assert.Equal(t, before, *f.plugins[plugin])
			assert.Zero(t, f.disabled)
			assert.NotContains(t, fmt.Sprint(err), "hunter2")
		})
	}
}

// A Swarm starts the installer again and again. The plugin is not interrupted each time.
func TestATargetThatWasGivenUpIsLeftAlone(t *testing.T) {
	f := withVersions(t)
	require.NoError(t, f.installer(one, nil).apply(t.Context()))
	why := f.installer(dead, nil).apply(t.Context())
	require.Equal(t, codeKept, codeOf(why))
	require.ErrorContains(t, why, dead+" does not start: ")
	require.ErrorContains(t, why, one+" with its former settings is in use again")
	f.disabled = 0
	again := f.installer(dead, nil).apply(t.Context())
	require.Equal(t, codeKept, codeOf(again))
	require.ErrorContains(t, again, why.Error())
	require.ErrorContains(t, again, "tried again after 10m0s")
	assert.Zero(t, f.disabled)

	// It has to be enabled all the same.
	f.plugins[plugin].Enabled = false
	require.Equal(t, codeKept, codeOf(f.installer(dead, nil).apply(t.Context())))
	_, enabled, _ := f.state()
	assert.True(t, enabled)

	// After a while it is tried again.
	file := f.host("/var/lib/blockvol/installer/record.json")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var r record
	require.NoError(t, json.Unmarshal(text, &r))
	r.Refused.At = r.Refused.At.Add(-11 * time.Minute)
	text, err = json.Marshal(r)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, text, 0o600))
	require.Equal(t, codeKept, codeOf(f.installer(dead, nil).apply(t.Context())))
	assert.Equal(t, 1, f.disabled)

	require.NoError(t, f.installer(two, nil).apply(t.Context()), "another one is tried at once")
	reference, enabled, _ := f.state()
	assert.Equal(t, two, reference)
	assert.True(t, enabled)
}

// The update to a version is cut off before that is known to work, and the next one does not work.
func TestItGoesBackToWhatIsKnownToWork(t *testing.T) {
	for cut := 1; ; cut++ {
		f := withVersions(t)
		require.NoError(t, f.installer(one, nil).apply(t.Context()))
		f.dieAt(cut, true)
		require.Error(t, f.installer(two, nil).apply(t.Context()))
		if reference, enabled, _ := f.state(); reference != two || !enabled {
			continue
		}
		require.Equal(t, codeKept, codeOf(f.installer(dead, nil).apply(t.Context())))
		reference, enabled, _ := f.state()
		assert.Equal(t, one, reference)
		assert.True(t, enabled)
		return
	}
}

// Swarm stops a task with SIGTERM, at any time.
func TestATaskThatIsStoppedLeavesThePluginEnabled(t *testing.T) {
	for cut := 1; ; cut++ {
		f := withVersions(t)
		require.NoError(t, f.installer(one, nil).apply(t.Context()))
		ctx, cancel := context.WithCancel(t.Context())
		f.set(func() { f.changes, f.cut, f.stop = 0, cut, cancel })
		err := f.installer(two, nil).apply(ctx)
		cancel()
		reference, enabled, _ := f.state()
		require.True(t, enabled, "stopped at %d", cut)
		if err == nil {
			require.Equal(t, two, reference, "stopped at %d", cut)
		}
		if cut > f.changed() {
			require.Greater(t, cut, 15)
			return
		}
	}
}

func TestARegistryThatIsGoneInTheMiddleOfAnUpdate(t *testing.T) {
	const three = "registry:5000/blockvol:4-amd64"
	for _, target := range []string{two, three} { // what was begun, and another one
		var f *fakeEngine
		for cut := 1; ; cut++ { // until the installer dies with the former version disabled
			f = withVersions(t)
			require.NoError(t, f.installer(one, nil).apply(t.Context()))
			f.dieAt(cut, true)
			require.Error(t, f.installer(two, nil).apply(t.Context()))
			if reference, enabled, _ := f.state(); reference == one && !enabled {
				break
			}
		}
		v := f.registry[two]
		delete(f.registry, two)
		err := f.installer(target, nil).apply(t.Context())
		require.Equal(t, codeRegistry, codeOf(err), "%v", err)
		reference, enabled, _ := f.state()
		assert.Equal(t, one, reference)
		assert.True(t, enabled)
		f.registry[target] = v
		require.NoError(t, f.installer(target, nil).apply(t.Context()), "it is tried again at once")
	}
}

func TestUninstallLeavesData(t *testing.T) {
	f := withVersions(t)
	require.NoError(t, f.installer(one, nil).apply(t.Context()))
	const dir = "/var/lib/blockvol"
	for _, file := range []string{"state/node", "state/lock", "state/journal/", "state/staging/", "volumes/disks/1.img"} {
		path := f.host(filepath.Join(dir, file))
		if strings.HasSuffix(file, "/") {
			require.NoError(t, os.MkdirAll(path, 0o700))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}
	f.users = []string{"shop", "blog"}
	err := f.installer(one, nil).uninstall(t.Context())
	require.Equal(t, codeInUse, codeOf(err))
	require.ErrorContains(t, err, "volumes are in use by shop, blog: stop these containers first; nothing was removed")
	_, enabled, _ := f.state()
	assert.True(t, enabled)
	f.users, f.attached = nil, []string{"idle", "other"}
	require.NoError(t, f.installer(one, nil).uninstall(t.Context()))
	assert.Empty(t, f.attached, "no disk stays attached")
	assert.Empty(t, f.plugins)
	assert.Empty(t, f.jobs)
	assert.NoDirExists(t, f.host(dir+"/state"))
	assert.NoDirExists(t, f.host(dir+"/installer"))
	assert.NoFileExists(t, f.host("/usr/local/bin/blockvol"))
	assert.FileExists(t, f.host(dir+"/volumes/disks/1.img"))
	require.NoError(t, f.installer(one, nil).uninstall(t.Context()), "twice")
}

// An operator has disabled the plugin, whose directories are not the usual ones, and the installer dies at any step.
func TestAPluginThatWasDisabledKeepsItsDirectories(t *testing.T) {
	for _, to := range []string{two, dead} {
		for cut := 1; ; cut++ {
			f := withVersions(t)
			require.NoError(t, f.installer(one, map[string]string{"state.source": "/elsewhere"}).apply(t.Context()))
			require.NoError(t, os.RemoveAll(f.host("/var/lib/blockvol/installer")))
			f.plugins[plugin].Enabled = false
			f.dieAt(cut, true)
			err := f.installer(to, nil).apply(t.Context())
			if f.hasDied() {
				err = f.installer(to, nil).apply(t.Context())
			}
			reference, enabled, settings := f.state()
			assert.True(t, enabled, "to %s, killed at %d", to, cut)
			assert.Equal(t, "/elsewhere", settings["state.source"], "to %s, killed at %d", to, cut)
			if to == dead {
				assert.Equal(t, codeKept, codeOf(err), "killed at %d: %v", cut, err)
				assert.Equal(t, one, reference)
			} else {
				require.NoError(t, err, "killed at %d", cut)
				assert.Equal(t, two, reference)
			}
			if cut > f.changed() {
				break
			}
		}
	}
}

// A version was given up, another one was begun and cut off, and the first is deployed again.
func TestWhatWasGivenUpDoesNotEndAnotherChangeHalfWay(t *testing.T) {
	for cut := 1; ; cut++ {
		f := withVersions(t)
		require.NoError(t, f.installer(one, map[string]string{"state.source": "/elsewhere"}).apply(t.Context()))
		require.Equal(t, codeKept, codeOf(f.installer(dead, nil).apply(t.Context())))
		f.dieAt(cut, true)
		if f.installer(two, nil).apply(t.Context()) == nil {
			return
		}
		known := one // to work
		if text, err := os.ReadFile(f.host("/var/lib/blockvol/installer/record.json")); err == nil && !strings.Contains(string(text), `"before"`) {
			known, _, _ = f.state()
		}
		require.Error(t, f.installer(dead, nil).apply(t.Context()))
		reference, enabled, settings := f.state()
		require.True(t, enabled, "killed at %d", cut)
		require.Equal(t, known, reference, "killed at %d", cut)
		require.Equal(t, "/elsewhere", settings["state.source"], "killed at %d", cut)
	}
}

func TestNothingIsReplacedWithoutAWayBack(t *testing.T) {
	f := withVersions(t)
	require.NoError(t, f.installer(one, nil).apply(t.Context()))
	delete(f.registry, one)
	f.changes = 0
	err := f.installer(two, nil).apply(t.Context())
	require.Equal(t, codeRegistry, codeOf(err), "%v", err)
	require.ErrorContains(t, err, "nothing was changed, since there would be no way back")
	reference, enabled, _ := f.state()
	assert.Equal(t, one, reference)
	assert.True(t, enabled)
	t.Setenv(noWayBack, "yes")
	require.NoError(t, f.installer(two, nil).apply(t.Context()))
}
