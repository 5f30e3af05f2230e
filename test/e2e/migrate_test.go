package e2e_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/engine"
)

// Docker keeps which plugin a name is of, also when that plugin is disabled or removed. docs/migrate.md says how to get the name free.
func TestANameOfAnotherPluginIsFreeAfterARestartOfTheEngine(t *testing.T) {
	if testing.Short() {
		t.Skip("it is about Docker alone")
	}
	t.Parallel()
	e := engine.Start(t)
	e.InstallPlugin(pluginDir)
	files := labelled(t, "other") // Docker makes no second plugin with the same configuration or files
	require.NoError(t, os.WriteFile(filepath.Join(files, "rootfs", "other"), nil, 0o600))
	e.Docker("plugin", "create", "other:latest", e.Grantable(files))
	for _, source := range []string{"state", "volumes"} {
		dir := filepath.Join(e.Dir, "other-"+source)
		e.Run("mkdir", dir)
		e.Docker("plugin", "set", "other", source+".source="+dir)
	}
	e.Docker("plugin", "set", "other", "LOCAL_OVERCOMMIT=true")
	e.Docker("plugin", "enable", "other")
	e.Docker("volume", "create", "--driver", "other", "--opt", "size=100MiB", "shop")

	e.Docker("plugin", "disable", "--force", "other")
	_, err := e.Try("volume", "rm", "--force", "shop")
	require.ErrorContains(t, err, "found but disabled", "the manual does not say that this helps")
	_, err = e.Try("volume", "create", "--driver", engine.Plugin, "--opt", "size=100MiB", "shop")
	require.ErrorContains(t, err, "volume name must be unique", "as the manual quotes it")

	e.Down()
	e.Up()
	e.Docker("volume", "create", "--driver", engine.Plugin, "--opt", "size=100MiB", "shop")
	assert.Equal(t, engine.Plugin, e.Docker("volume", "inspect", "--format", "{{.Driver}}", "shop"))
	e.Down()
	e.Up()
	assert.Equal(t, engine.Plugin, e.Docker("volume", "inspect", "--format", "{{.Driver}}", "shop"), "it stays so")
	e.Docker("volume", "rm", "shop")
}
