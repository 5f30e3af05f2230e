package e2e_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/engine"
)

// Tests of events in the life of the engine.

func TestDockerdIsStopped(t *testing.T) {
	e := start(t)
	create(e, "stopped")
	startWriter(t, e, "stopped", "--restart", "always")
	e.Down()
	eventuallyReleased(t, e)
	e.Up()
	e.Eventually("the container is back", func() error { _, err := lines(e); return err })
	e.Docker("rm", "--force", "writer")
	eventuallyReleased(t, e)
}

func TestDockerdIsKilled(t *testing.T) {
	e := start(t)
	create(e, "killed")
	once(e, "killed", "echo before >/data/marker")
	e.Docker("run", "--detach", "--name", "sleeper", "--restart", "always", "--volume", "killed:/data", "busybox", "sleep", "1000")
	e.Kill()
	e.Up()
	e.Eventually("the container is back with its volume", func() error {
		out, err := e.Try("exec", "sleeper", "cat", "/data/marker")
		if err == nil && out != "before" {
			err = errors.New("another volume: " + out)
		}
		return err
	})
	e.Docker("exec", "sleeper", "sh", "-c", "echo after >>/data/marker")
	e.Docker("rm", "--force", "sleeper")
	eventuallyReleased(t, e)
	assert.Equal(t, "before\nafter", once(e, "killed", "cat /data/marker"))
}

func TestDockerdIsKilledAndContainersAreNotRestarted(t *testing.T) {
	e := start(t)
	create(e, "killed")
	startWriter(t, e, "killed")
	e.Kill()
	e.Up()
	eventuallyReleased(t, e)
	assertNothingLost(t, e, "killed")
}

func TestLiveRestoreKeepsContainersWriting(t *testing.T) {
	e := start(t, engine.LiveRestore())
	create(e, "live")
	startWriter(t, e, "live")
	pid := e.PluginPID()
	for _, stop := range []func(){e.Down, e.Kill} {
		stop()
		e.Up()
		awaitLines(t, e, 10)
	}
	assert.Equal(t, pid, e.PluginPID(), "the plugin keeps running")
	e.Docker("rm", "--force", "writer")
	eventuallyReleased(t, e)
	assertNothingLost(t, e, "live")
}

// dockerd does not report this container's end to the plugin, which learns of it from the kernel.
func TestContainerDiesWhileDockerdIsDown(t *testing.T) {
	e := start(t, engine.LiveRestore())
	create(e, "orphaned")
	startWriter(t, e, "orphaned")
	pid := e.Docker("inspect", "--format", "{{.State.Pid}}", "writer")
	e.Kill()
	e.Run("kill", "-9", pid)
	e.Up()
	// The plugin waits two minutes for a container to come back, and the kernel may write what the dead one left for as long.
	e.EventuallyWithin(8*time.Minute, "the volume is unmounted and detached", func() error { return held(e) })
	assertNothingLost(t, e, "orphaned")
}

func TestTheHostLosesPower(t *testing.T) {
	e := start(t)
	create(e, "unplugged")
	startWriter(t, e, "unplugged", "--restart", "always")
	e.PowerOff()
	e.Up()
	e.Eventually("the container is back", func() error { _, err := lines(e); return err })
	e.Docker("rm", "--force", "writer")
	eventuallyReleased(t, e)
}

func awaitPluginInSwarm(e *engine.Engine) {
	e.Eventually("the Swarm knows the plugin", func() error {
		plugins := e.Docker("node", "inspect", "--format", "{{range .Description.Engine.Plugins}}{{.Type}}/{{.Name}} {{end}}", "self")
		if !strings.Contains(plugins, "Volume/blockvol:latest") {
			return errors.New(plugins)
		}
		return nil
	})
}

func TestSwarmMovesFromTaskToTask(t *testing.T) {
	e := start(t)
	e.Docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
	awaitPluginInSwarm(e)
	const mount = "type=volume,source=book-{{.Task.Slot}},target=/data,volume-driver=blockvol,volume-opt=size=64MiB"
	e.Docker("service", "create", "--quiet", "--name", "guestbook", "--network", "host", "--no-resolve-image", "--mount", mount, "busybox",
		"sh", "-ec", "echo first >>/data/book; exec sleep 1000")
	e.Docker("service", "update", "--quiet", "--no-resolve-image", "--args", `sh -ec "echo second >>/data/book; exec sleep 1000"`, "guestbook")
	task := e.Docker("ps", "--quiet", "--filter", "name=guestbook")
	require.NotEmpty(t, task)
	assert.Equal(t, "first\nsecond", e.Docker("exec", task, "cat", "/data/book"))

	e.Docker("service", "scale", "--detach", "guestbook=0")
	eventuallyReleased(t, e)
	e.Docker("service", "rm", "guestbook")
	assert.Equal(t, "book-1", e.Docker("volume", "ls", "--quiet"), "volumes are kept")
	assert.Equal(t, "first\nsecond", once(e, "book-1", "cat /data/book"))
}
