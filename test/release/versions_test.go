package release_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/namespace"
)

// node has the directories of a daemon with provider local. Daemons of several versions run on them, one after the other.
type node struct {
	t          *testing.T
	dir        string
	namespaces *namespace.Set
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: namespace.Dir(t)}
	var err error
	n.namespaces, err = namespace.New(n.dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.namespaces.Close()) })
	return n
}

// daemon is a running blockvol.
type daemon struct {
	*node
	process *namespace.Process
	client  http.Client
	log     string // file
}

// start starts a program and waits until it listens.
func (n *node) start(program string) *daemon {
	n.t.Helper()
	socket := filepath.Join(n.dir, "socket")
	require.NoError(n.t, os.RemoveAll(socket))
	d := &daemon{node: n, log: filepath.Join(n.dir, "log")}
	log, err := os.Create(d.log)
	require.NoError(n.t, err)
	defer log.Close()
	cmd := exec.Command(program, "serve", "--socket", socket, "--published", filepath.Join(n.dir, "published"), "--state", filepath.Join(n.dir, "state"))
	cmd.Env = append(os.Environ(), "PROVIDER=local", "LOCAL_OVERCOMMIT=true", "LOCAL_DIR="+filepath.Join(n.dir, "volumes"))
	cmd.Stdout, cmd.Stderr = log, log
	d.process, err = n.namespaces.Start(cmd)
	require.NoError(n.t, err)
	d.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	deadline := time.Now().Add(2 * time.Minute)
	for d.call("Plugin.Activate", "") != nil {
		require.False(n.t, d.process.Ended() || time.Now().After(deadline), "it does not listen")
		time.Sleep(20 * time.Millisecond)
	}
	return d
}

// kill ends the daemon as a crash does.
func (d *daemon) kill() {
	d.t.Helper()
	require.NoError(d.t, d.process.Signal(syscall.SIGKILL))
	<-d.process.Done
	d.client.CloseIdleConnections()
}

// call makes a call of Docker's about a volume. The mount ID is the volume's name.
func (d *daemon) call(method, volume string) error {
	body, err := json.Marshal(map[string]any{"Name": volume, "ID": volume, "Opts": map[string]string{"size": "16MiB"}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://blockvol/"+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := d.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	var answer struct{ Err string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Err != "" {
		return errors.New(answer.Err)
	}
	return nil
}

// must makes calls that succeed.
func (d *daemon) must(volume string, methods ...string) {
	d.t.Helper()
	for _, method := range methods {
		err := d.call("VolumeDriver."+method, volume)
		if err != nil {
			log, _ := os.ReadFile(d.log)
			d.t.Fatalf("%s of %s: %v\n%s", method, volume, err, log)
		}
	}
}

// file is a file in a mounted volume.
func (n *node) file(volume string) string {
	return n.namespaces.Path(filepath.Join(n.dir, "published", volume, "file"))
}

func (n *node) write(volume string) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(n.file(volume), []byte("data of "+volume), 0o600))
}

func (n *node) read(volume string) string {
	n.t.Helper()
	content, err := os.ReadFile(n.file(volume))
	require.NoError(n.t, err)
	return string(content)
}

// compile builds the program from the sources in a directory.
func compile(t *testing.T, source string) (program string) {
	t.Helper()
	run(t, source, "make --no-print-directory build")
	program, err := filepath.Abs(filepath.Join(source, "build/blockvol"))
	require.NoError(t, err)
	return program
}

// The program can be another one, which runs where no Go is.
func TestAVolumeOutlivesItsDaemon(t *testing.T) {
	program := os.Getenv(programVariable)
	if program == "" {
		program = compile(t, root)
	}
	n := newNode(t)
	d := n.start(program)
	d.must("data", "Create", "Mount")
	n.write("data")
	d.kill()
	d = n.start(program)
	assert.Equal(t, "data of data", n.read("data"))
	d.must("data", "Unmount", "Mount")
	assert.Equal(t, "data of data", n.read("data"))
	d.must("data", "Unmount", "Remove")
}

const programVariable = "BLOCKVOL_TEST_PROGRAM"

// The state is what commit 9e3a921308245bbda6560f7c4c9257cd651ca227 left, killed while a container had the volume mounted. Its journal has
// format 1.
func TestTheStateOfAnOlderVersionIsRead(t *testing.T) {
	n := newNode(t)
	run(t, "testdata", `tar --extract --file state-2026-11-25.tar.gz --directory "$1"`, n.dir)
	d := n.start(compile(t, root))
	d.must("data", "Get", "Mount")
	assert.Equal(t, "written by the version of 2026-11-25\n", n.read("data"))
	d.must("data", "Unmount", "Remove")
	assert.Empty(t, run(t, n.dir, "find state -name '*.damaged*'"), "the journal's entry too")
}

// The later version is this one with formats that are one higher.
func TestALaterVersionsStateIsRefusedAndKept(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds two versions")
	}
	this, source := compile(t, root), t.TempDir()
	run(t, root, `git ls-files -z | xargs -0 cp --parents --target-directory="$1"`, source)
	run(t, source, `
		sed -i 's/^const journalVersion = 2$/const journalVersion = 3/; s/case e.Version != 1 /case e.Version != 2 \&\& e.Version != 1 /' driver/node/journal.go
		sed -i 's/^const version = 1$/const version = 2/; s/case m.Version != version:/case m.Version != version \&\& m.Version != 1:/' providers/local/meta.go
		grep --quiet 'e.Version != 2 && e.Version != 1 &&' driver/node/journal.go
		grep --quiet 'm.Version != version && m.Version != 1:' providers/local/meta.go`)
	later := compile(t, source)

	n := newNode(t)
	d := n.start(this)
	for _, volume := range []string{"old", "untouched"} {
		d.must(volume, "Create", "Mount")
		n.write(volume)
	}
	d.must("untouched", "Unmount")
	d.kill()

	d = n.start(later)
	d.must("old", "Unmount", "Mount")
	assert.Equal(t, "data of old", n.read("old"), "the later version knows the use and has the data")
	d.must("new", "Create", "Mount")
	n.write("new")
	d.kill()

	d = n.start(this)
	before := n.records()
	for _, volume := range []string{"old", "new"} {
		d.must(volume, "Unmount") // it does nothing: Docker must be able to go on
		for _, method := range []string{"Mount", "Remove"} {
			err := d.call("VolumeDriver."+method, volume)
			require.ErrorContains(t, err, "written by a later version of blockvol", "%s of %s", method, volume)
			require.ErrorContains(t, err, "install that version again")
		}
	}
	d.must("untouched", "Mount")
	assert.Equal(t, "data of untouched", n.read("untouched"), "other volumes are served")
	d.must("untouched", "Unmount")
	d.kill()
	after := n.records()
	for file, content := range before {
		if strings.Contains(content, `"untouched"`) || strings.Contains(file, "/nodes/") {
			continue
		}
		assert.Equal(t, content, after[file], file)
	}

	d = n.start(later)
	for _, volume := range []string{"old", "new"} {
		assert.Equal(t, "data of "+volume, n.read(volume), "what was mounted stayed mounted")
		d.must(volume, "Unmount", "Mount")
		assert.Equal(t, "data of "+volume, n.read(volume))
		d.must(volume, "Unmount", "Remove")
	}
}

// records returns the content of the files in which a daemon keeps what it must remember.
func (n *node) records() map[string]string {
	n.t.Helper()
	records := map[string]string{}
	for _, pattern := range []string{"state/*/*.json", "volumes/*/*.json"} {
		for _, file := range glob(n.t, n.dir, pattern) {
			content, err := os.ReadFile(file)
			require.NoError(n.t, err)
			records[file] = string(content)
		}
	}
	return records
}
