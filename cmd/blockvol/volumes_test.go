package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/docker"
)

// asked returns what a command prints when the plugin gives these answers, by path.
func asked(t *testing.T, answers map[string]string, args ...string) string {
	t.Helper()
	out, _, err := ask(t, answers, args...)
	require.NoError(t, err)
	return out
}

// ask returns what a command prints, what it asks the plugin to do, and how it ends.
func ask(t *testing.T, answers map[string]string, args ...string) (printed string, wanted []admin.Request, err error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "plugin.sock")
	l, err := docker.Listen(t.Context(), socket)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			var request admin.Request
			assert.NoError(t, json.NewDecoder(r.Body).Decode(&request))
			assert.NotEmpty(t, request.ID)
			request.ID = ""
			wanted = append(wanted, request)
		}
		answer, has := answers[r.URL.RequestURI()]
		if !has {
			if answer, has = answers[r.URL.Path]; !has {
				w.WriteHeader(http.StatusNotFound)
				answer = `{"error": {"code": "not-found", "message": "there is none"}}`
			}
		}
		_, _ = w.Write([]byte(answer))
	}))
	server.Listener.Close() //nolint:errcheck // it was not used
	server.Listener = l
	server.Start()
	defer server.Close()
	var out strings.Builder
	root := command()
	root.SetArgs(append(args, "--socket="+socket))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetIn(strings.NewReader("no\n"))
	err = root.Execute()
	return out.String(), wanted, err
}

func TestCommandsShowHowFullAVolumeIs(t *testing.T) {
	const volume = `{"name": "data", "size_bytes": 21474836480, "status": {"used": 1288490189, "available": 20186346291, "inodes-used": 12345678, "state": "mounted"}}`
	answers := map[string]string{
		admin.Root + "volumes":      `{"volumes": [` + volume + `, {"name": "other", "size_bytes": 1073741824, "status": {"state": "detached"}}]}`,
		admin.Root + "volumes/data": volume,
		admin.Root + "status":       `{"state": "serving", "volumes": [` + volume + `], "jobs": []}`,
	}
	assert.Contains(t, asked(t, answers, "ls"), "data    20GiB   1.2GiB (6%)   mounted\nother   1GiB                  detached\n")
	assert.Contains(t, asked(t, answers, "status"), "1.2GiB (6%)")
	shown := asked(t, answers, "inspect", "data")
	assert.Regexp(t, `(?m)^used +1\.2GiB \(6%\)$`, shown)
	assert.Regexp(t, `(?m)^available +18\.8GiB$`, shown)
	assert.Regexp(t, `(?m)^inodes-used +12345678$`, shown)
	var all admin.Volumes
	require.NoError(t, json.Unmarshal([]byte(asked(t, answers, "ls", "--json")), &all))
	assert.InDelta(t, 1288490189, all.Volumes[0].Status["used"], 0, "programs get bytes")
}
