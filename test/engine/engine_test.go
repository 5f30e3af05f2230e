package engine_test

import (
	"bufio"
	"fmt"
	"io"
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

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/namespace"
)

func TestTwoEnginesRunContainersSideBySide(t *testing.T) {
	first, second := engine.Start(t), engine.Start(t)
	for _, e := range []*engine.Engine{first, second} {
		e.Docker("run", "--detach", "--name", "same-name", e.Busybox(), "sleep", "1000")
	}
	assert.Equal(t, "/same-name", first.Docker("inspect", "--format", "{{.Name}}", "same-name"))
	first.PowerOff()
	assert.Equal(t, "true", second.Docker("inspect", "--format", "{{.State.Running}}", "same-name"))
}

func TestContainersOutliveAKilledEngineWithLiveRestore(t *testing.T) {
	e := engine.Start(t, engine.LiveRestore())
	id := e.Docker("run", "--detach", e.Busybox(), "sleep", "1000")
	pid := e.Docker("inspect", "--format", "{{.State.Pid}}", id)
	e.Kill()
	e.Up()
	assert.Equal(t, pid, e.Docker("inspect", "--format", "{{.State.Pid}}", id))
	e.Down()
	e.Up()
	assert.Equal(t, pid, e.Docker("inspect", "--format", "{{.State.Pid}}", id))
}

func TestListenServesTheEnginesNetworkOnly(t *testing.T) {
	first, second := engine.Start(t), engine.Start(t)
	listener := first.Listen("127.0.0.1:0")
	address := listener.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "hello") })}
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()

	get := []string{"wget", "-q", "-O", "-", "http://" + address}
	assert.Equal(t, "hello", first.Run("busybox", get...))
	run := append([]string{"run", "--rm", "--network", "host", first.Busybox()}, get...)
	assert.Equal(t, "hello", first.Docker(run...))
	second.Busybox()
	_, err := second.Try(run...)
	require.ErrorContains(t, err, "refused", "other engines cannot reach it")
	_, err = net.DialTimeout("tcp", address, time.Second)
	require.Error(t, err, "this machine cannot reach it")
	same := second.Listen(address)
	assert.Equal(t, address, same.Addr().String(), "addresses are independent")

	require.NoError(t, server.Close())
	require.ErrorIs(t, <-served, http.ErrServerClosed)
}

// The child is this test binary. It is killed while its engine runs a container and a loop device is attached to one of its
// files.
func TestEngineIsRemovedWhenItsTestIsKilled(t *testing.T) {
	const variable = "BLOCKVOL_TEST_LEAVES_AN_ENGINE"
	if os.Getenv(variable) != "" {
		e := engine.Start(t)
		e.Docker("run", "--detach", e.Busybox(), "sleep", "1000")
		image := filepath.Join(e.Volumes, "image")
		require.NoError(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
		e.Run("losetup", "--find", image)
		fmt.Println("\nrunning in " + e.Dir)
		time.Sleep(time.Hour)
	}
	child := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), variable+"=1")
	stdout, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	var dir string
	for lines := bufio.NewScanner(stdout); dir == "" && lines.Scan(); {
		_, dir, _ = strings.Cut(lines.Text(), "running in ")
	}
	require.NotEmpty(t, dir, "the child failed before its engine ran")
	loops, err := namespace.Loops(dir)
	require.NoError(t, err)
	require.Len(t, loops, 1)

	require.NoError(t, child.Process.Signal(syscall.SIGKILL))
	_, err = io.Copy(io.Discard, stdout)
	require.NoError(t, err)
	require.Error(t, child.Wait())

	deadline := time.Now().Add(time.Minute)
	for left := leftovers(t, dir, loops[0]); len(left) > 0; left = leftovers(t, dir, loops[0]) {
		require.True(t, time.Now().Before(deadline), "left behind: %v", left)
		time.Sleep(50 * time.Millisecond)
	}
}

func leftovers(t *testing.T, dir, loop string) (left []string) {
	if _, err := os.Stat(dir); err == nil {
		left = append(left, dir)
	}
	if backing, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(loop), "loop/backing_file")); err == nil && strings.Contains(string(backing), filepath.Base(dir)) {
		left = append(left, loop)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		groups, err := filepath.Glob(pattern + filepath.Base(dir))
		require.NoError(t, err)
		left = append(left, groups...)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, process := range processes {
		if line, err := os.ReadFile(process); err == nil && strings.Contains(string(line), dir) {
			left = append(left, process)
		}
	}
	return left
}
