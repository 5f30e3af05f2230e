package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
)

// In a container, or in a shell with mounts of its own, the volume's path is a bare directory.
func TestAnImportThatDoesNotSeeTheVolumesMountCopiesNothing(t *testing.T) {
	t.Setenv("TEST_AS_BLOCKVOL", "1") // the process that copies
	source, target := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(source, "page"), []byte("hello"), 0o600))
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "docker.sock"))
	require.NoError(t, err)
	engine := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any = []any{} // no container uses it
		if strings.HasSuffix(r.URL.Path, "/volumes/old") {
			answer = map[string]string{"Name": "old", "Driver": "local", "Mountpoint": source}
		}
		assert.NoError(t, json.NewEncoder(w).Encode(answer))
	}))
	engine.Listener.Close() //nolint:errcheck // it was not used
	engine.Listener = l
	engine.Start()
	defer engine.Close()

	_, _, err = ask(t, map[string]string{
		admin.Root + "volumes/data":      `{"name": "data"}`,
		admin.Root + "volumes/data/hold": `{"mountpoint": "` + target + `"}`,
		admin.Root + "volumes/data/drop": `{}`,
	}, "import", "data", "--from-volume", "old", "--docker-host", "unix://"+l.Addr().String())
	require.ErrorIs(t, err, volume.Unavailable)
	require.ErrorContains(t, err, "this command does not see that")
	left, err := os.ReadDir(target)
	require.NoError(t, err)
	assert.Empty(t, left)
}
