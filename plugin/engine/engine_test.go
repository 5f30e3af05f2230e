package engine

import (
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// answers serves what an engine answers, by path and query.
func answers(t *testing.T, all map[string]string) *Client {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir) // its path may be too long for an address
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", "s")
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, has := all[r.URL.RequestURI()]
		if !has {
			w.WriteHeader(http.StatusNotFound)
		}
		if answer == "" {
			w.WriteHeader(http.StatusInternalServerError)
			answer = `{"message": "out of order"}`
		}
		_, _ = w.Write([]byte(answer))
	}))
	server.Listener.Close() //nolint:errcheck // it was not used
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	c, err := New("unix://" + filepath.Base("s"))
	require.NoError(t, err)
	return c
}

func TestAVolumeOfTheEngine(t *testing.T) {
	c := answers(t, map[string]string{
		"/volumes/a%20b": `{"Name": "a b", "Driver": "local", "Mountpoint": "/var/lib/docker/volumes/a b/_data", "Options": {"type": "nfs"}}`, "/volumes/broken": "", "/volumes/odd": "[]",
	})
	v, err := c.Volume(t.Context(), "a b")
	require.NoError(t, err)
	assert.Equal(t, Volume{"local", "/var/lib/docker/volumes/a b/_data", map[string]string{"type": "nfs"}}, v)
	_, err = c.Volume(t.Context(), "none")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = c.Volume(t.Context(), "broken")
	require.ErrorContains(t, err, "the engine on s answers 500 Internal Server Error: out of order")
	_, err = c.Volume(t.Context(), "odd")
	require.ErrorContains(t, err, "cannot be read")
}

func TestOnlyRunningContainersUseAVolume(t *testing.T) {
	c := answers(t, map[string]string{"/containers/json?all=1&filters=%7B%22volume%22%3A%5B%22data%22%5D%7D": `[
		{"Names": ["/one"], "State": "running", "Mounts": [{"Type": "bind"}, {"Type": "volume", "Name": "data"}]},
		{"Names": ["/two"], "State": "paused", "Mounts": [{"Type": "volume", "Name": "data"}]},
		{"Names": ["/three"], "State": "exited", "Mounts": [{"Type": "volume", "Name": "data"}]},
		{"Names": ["/four"], "State": "running", "Mounts": [{"Type": "volume", "Name": "data-2"}]}
	]`})
	users, err := c.Users(t.Context(), "data")
	require.NoError(t, err)
	assert.Equal(t, []string{"one", "two"}, users)
}

func TestAnEngineElsewhereIsRefused(t *testing.T) {
	_, err := New("tcp://10.0.0.1:2376")
	require.ErrorContains(t, err, "the engine at tcp://10.0.0.1:2376 is not on this machine")
	c, err := New("unix:///nowhere")
	require.NoError(t, err)
	_, err = c.Volume(t.Context(), "data")
	require.ErrorContains(t, err, "the engine does not answer on /nowhere")
}
