package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/plugin/engine"
)

const (
	settingsFile = "/settings"
	secretsFile  = "/run/secrets/blockvol-secrets" //nolint:gosec // where they are
)

var nameForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.]*$`)

// readSettings reads lines NAME=VALUE. Empty lines and those that begin with # are comments. A file that does not exist has none.
func readSettings(path string) (map[string]string, error) {
	all := map[string]string{}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, fail(codeSettings, "%w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := add(all, line); err != nil { // without the line, which may be a secret
			return nil, fail(codeSettings, "line %d of %s %w", n, path, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fail(codeSettings, "%s: %w", path, err)
	}
	return all, nil
}

// add adds NAME=VALUE.
func add(all map[string]string, setting string) error {
	name, value, is := strings.Cut(setting, "=")
	name = strings.TrimSpace(name)
	_, twice := all[name]
	switch {
	case !is || !nameForm.MatchString(name):
		return errors.New("is not NAME=VALUE: correct it")
	case twice:
		return fmt.Errorf("sets %s a second time: leave one of them out", name)
	}
	all[name] = strings.TrimSpace(value)
	return nil
}

// twice refuses a setting that is in the secrets, too.
func twice(settings, secrets map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		for _, setting := range []string{name, name + "_FILE"} {
			if _, has := settings[setting]; has {
				return fail(codeSettings, "the settings have %s, and the secrets have %s: leave one of them out", setting, name)
			}
		}
	}
	return nil
}

// takeAuth takes the credentials for the registry out of the secrets.
func takeAuth(secrets map[string]string, reference string) (*engine.RegistryAuth, error) {
	const username, password = "REGISTRY_USERNAME", "REGISTRY_PASSWORD"
	auth := &engine.RegistryAuth{Username: secrets[username], Password: secrets[password], ServerAddress: registryOf(reference)}
	maps.DeleteFunc(secrets, func(name, _ string) bool { return name == username || name == password })
	switch {
	case auth.Username == "" && auth.Password == "":
		return nil, nil //nolint:nilnil // no credentials, no error
	case auth.Username == "" || auth.Password == "":
		return nil, fail(codeSettings, "%s needs both %s and %s, or neither", secretsFile, username, password)
	}
	return auth, nil
}

func registryOf(reference string) string { return strings.SplitN(reference, "/", 2)[0] }

// authFor returns the credentials if they are for the registry of that plugin, else nil: no other registry is told them.
func (i *installer) authFor(reference string) *engine.RegistryAuth {
	if i.auth == nil || i.auth.ServerAddress != registryOf(reference) {
		return nil
	}
	return i.auth
}

// pluginOf returns what the plugin of this version is called in the registry: that of REGISTRY/blockvol-installer:VERSION is
// REGISTRY/blockvol:VERSION-ARCHITECTURE.
func pluginOf(image, architecture string) (string, error) {
	image, _, _ = strings.Cut(image, "@")
	const suffix = "-installer"
	slash := strings.LastIndex(image, "/")
	name, version, tagged := strings.Cut(image[slash+1:], ":")
	if !strings.HasSuffix(name, suffix) || !tagged {
		return "", fail(codeSettings, "the image is called %s, which does not tell where the plugin is: call it REGISTRY/blockvol%s:VERSION", image, suffix)
	}
	reference := image[:slash+1] + strings.TrimSuffix(name, suffix) + ":" + strings.TrimSuffix(version, "-"+architecture) + "-" + architecture
	// In full, as engines show it.
	switch host, rest, has := strings.Cut(reference, "/"); {
	case !has:
		reference = "docker.io/library/" + reference
	case !strings.ContainsAny(host, ".:") && host != "localhost":
		reference = "docker.io/" + host + "/" + rest
	}
	return reference, nil
}
