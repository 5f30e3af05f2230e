package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud/fronts"
)

// Where the declared settings are shown: the help, config.json and docs/.

var update = flag.Bool("settings.update", false, "write the declared settings into config.json and docs/, in place of comparing")

func TestHelpListsEverySetting(t *testing.T) {
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"serve", "--help"})
	require.NoError(t, cmd.Execute())
	all := slices.Clone(generalSettings)
	for _, c := range constructors {
		all = append(all, c.settings...)
	}
	for _, s := range all {
		assert.Contains(t, out.String(), "\n  "+s.Name)
		assert.Contains(t, out.String(), plainHelp(s))
	}
	assert.NotContains(t, out.String(), "glance", "a former name")
}

// env is an entry of config.json: a setting that `docker plugin set` accepts.
type pluginEnv struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Settable    []string `json:"settable"`
}

func declaredEnv() (env []pluginEnv) {
	settable := []string{"value"}
	add := func(before string, settings []providers.Setting) {
		for _, s := range settings {
			if s.Daemon {
				continue
			}
			env = append(env, pluginEnv{s.Name, before + plainHelp(s), settable})
			if s.Secret {
				env = append(env, pluginEnv{s.Name + providers.FileSuffix, before + "a file that holds " + s.Name + ", which `docker plugin inspect` would show; /data/state is the host's state directory", settable})
			}
		}
	}
	add("", generalSettings)
	for _, name := range providerNames() {
		add("Provider "+name+": ", constructors[name].settings)
	}
	for i := range env {
		d := strings.ReplaceAll(env[i].Description, "`", "'")
		env[i].Description = strings.ToUpper(d[:1]) + d[1:] + "."
	}
	return env
}

func TestConfigJSONHasTheDeclaredSettings(t *testing.T) {
	const file, begin, end = "../../config.json", `  "env": [`, "\n  ]"
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	if *update {
		var entries []string
		for _, e := range declaredEnv() {
			name, err := json.Marshal(e.Name)
			require.NoError(t, err)
			description, err := json.Marshal(e.Description)
			require.NoError(t, err)
			entries = append(entries, fmt.Sprintf("\n    {\n      \"name\": %s,\n      \"description\": %s,\n      \"settable\": [\"value\"]\n    }", name, description))
		}
		content = between(t, content, begin, end, strings.Join(entries, ","))
		require.NoError(t, os.WriteFile(file, content, 0o644))
	}
	var config struct{ Env []pluginEnv }
	require.NoError(t, json.Unmarshal(content, &config))
	assert.Equal(t, declaredEnv(), config.Env, "make docs writes it")
}

func TestDocsHaveTheDeclaredSettings(t *testing.T) {
	pages := map[string][]providers.Setting{"settings": generalSettings}
	for name, c := range constructors {
		pages[name] = c.settings
	}
	for page, settings := range pages {
		const begin, end = "<!-- The table is written by `make docs`. -->\n", "<!-- Here it ends. -->"
		file := filepath.Join("../../docs", page+".md")
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		want := between(t, content, begin, end, table(settings))
		if *update {
			require.NoError(t, os.WriteFile(file, want, 0o644))
			continue
		}
		assert.Equal(t, string(want), string(content), "%s: make docs writes it", file)
	}
}

// What a new provider needs besides its package, see CONTRIBUTING.md.
func TestEveryProviderIsSimulatedAndInTheManual(t *testing.T) {
	simulated := []string{"local"} // needs no simulation
	for _, kind := range fronts.All {
		simulated = append(simulated, kind.Provider)
	}
	assert.ElementsMatch(t, providerNames(), simulated)
	for _, page := range []string{"../../README.md", "../../docs/README.md"} {
		content, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, name := range providerNames() {
			assert.Contains(t, string(content), "\n| `"+name+"`", page)
		}
	}
}

// table is what a page of docs/ says of settings.
func table(settings []providers.Setting) string {
	var b strings.Builder
	b.WriteString("| setting | meaning | default |\n|---|---|---|\n")
	for _, s := range settings {
		name, value := "`"+s.Name+"`", s.Default
		if s.Secret {
			name += ", `" + s.Name + providers.FileSuffix + "`"
		}
		if value != "" && !strings.Contains(value, " ") {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, s.Help, value)
	}
	return b.String()
}

// between replaces what stands between two texts of which the second follows the first.
func between(t *testing.T, content []byte, begin, end, with string) []byte {
	t.Helper()
	before, rest, found := strings.Cut(string(content), begin)
	require.True(t, found, begin)
	_, after, found := strings.Cut(rest, end)
	require.True(t, found, end)
	return []byte(before + begin + with + end + after)
}

// Names that no code of ours asks for: the SDK does.
var readBySDK = []string{"AWS_CA_BUNDLE", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_ENDPOINT_URL_EC2", "AWS_SESSION_TOKEN"}

// What is read depends on what is set, so each constructor runs with every three of its settings left out.
func TestProvidersReadTheSettingsThatTheyDeclare(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	dir := t.TempDir()
	for name, c := range constructors {
		declared, asked := map[string]bool{}, map[string]bool{}
		for _, s := range c.settings {
			declared[s.Name] = true
			if s.Secret {
				declared[s.Name+providers.FileSuffix] = true
			}
			if slices.Contains(readBySDK, s.Name) {
				asked[s.Name] = true
			}
		}
		for _, a := range c.settings {
			for _, b := range c.settings {
				for _, d := range c.settings {
					left := []string{a.Name, b.Name, d.Name}
					_, _ = c.fromEnv(func(name string) string {
						asked[name] = true
						switch {
						case strings.HasSuffix(name, "_DIR"):
							return dir
						case slices.Contains(left, name), strings.HasSuffix(name, providers.FileSuffix):
							return ""
						}
						return "x"
					}, "node", "main", log, nil)
				}
			}
		}
		assert.Equal(t, slices.Sorted(maps.Keys(declared)), slices.Sorted(maps.Keys(asked)), name)
	}
}
