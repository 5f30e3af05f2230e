// Package e2e_test tests the built plugin in a real engine with real disks.
//
// Each test is an event in the life of a volume. Unless it says otherwise, no disk is attached when it ends.
package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/namespace"
	"github.com/blockvol/blockvol/test/violation"
)

// pluginDir is the output of `make plugin`. TestMain rebuilds it.
const pluginDir = "../../build/plugin"

func TestMain(m *testing.M) {
	if out, err := exec.Command("make", "-C", "../..", "plugin").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "make plugin: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// start returns an engine with the plugin and an image.
func start(t *testing.T, options ...engine.Option) *engine.Engine {
	t.Helper()
	t.Parallel()
	e := engine.Start(t, options...)
	e.Busybox()
	e.InstallPlugin(pluginDir, "LOG_LEVEL=debug")
	return e
}

// startTwo returns two engines that share an image directory, like two nodes of a cloud. A request for a volume that the other
// holds fails soon.
func startTwo(t *testing.T) (here, there *engine.Engine) {
	t.Helper()
	t.Parallel()
	images := engine.Images(namespace.Dir(t))
	here, there = engine.Start(t, images), engine.Start(t, images)
	for _, e := range []*engine.Engine{here, there} {
		e.Busybox()
		e.InstallPlugin(pluginDir, "LOG_LEVEL=debug", "CALL_TIMEOUT=10s")
	}
	return here, there
}

func create(e *engine.Engine, name string, options ...string) {
	args := []string{"volume", "create", "--driver", "blockvol"}
	for _, option := range append([]string{"size=64MiB"}, options...) {
		args = append(args, "--opt", option)
	}
	e.Docker(append(args, name)...)
}

// once runs a shell command in a temporary container with the volume at /data.
func once(e *engine.Engine, volume, command string) (out string) {
	args := []string{"run", "--rm", "--volume", volume + ":/data", "busybox", "sh", "-ec", command}
	e.Eventually("the volume can be mounted", func() (err error) {
		// What an engine that was killed can do to a plugin when it starts, the plugin mends, and says so meanwhile.
		if out, err = e.Try(args...); err != nil && !strings.Contains(err.Error(), "the plugin restarts, try again") {
			out, err = e.Docker(args...), nil // which reports it
		}
		return err
	})
	return out
}

// operate runs a command of an operator on the engine's machine and returns what it prints. It must end with that exit code.
func operate(t *testing.T, e *engine.Engine, code int, args ...string) string {
	t.Helper()
	out := e.Run("sh", append([]string{"-c", `"$@" 2>&1; echo "exit code $?"`, "sh", pluginBinary(t)}, args...)...)
	printed, ended, _ := strings.Cut(out, "exit code ")
	require.Equal(t, strconv.Itoa(code), ended, "blockvol %v: %s", args, printed)
	return printed
}

func pluginBinary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(pluginDir + "/rootfs/usr/bin/blockvol")
	require.NoError(t, err)
	return path
}

// writer is a shell command that appends the numbers from 1 to /data/log until an error. It is slow, so that it does not fill
// the disk.
const writer = `n=0; while :; do n=$((n + 1)); echo $n >>/data/log; sleep 0.01; done`

// startWriter starts a container named writer that runs writer, and waits for its first lines.
func startWriter(t *testing.T, e *engine.Engine, volume string, options ...string) {
	t.Helper()
	args := append([]string{"run", "--detach", "--name", "writer", "--volume", volume + ":/data"}, options...)
	e.Docker(append(args, "busybox", "sh", "-ec", writer)...)
	awaitLines(t, e, 1)
}

func lines(e *engine.Engine) (int, error) {
	out, err := e.Try("exec", "writer", "sh", "-c", "wc -l </data/log")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

// awaitLines waits until the writer has written this many more lines.
func awaitLines(t *testing.T, e *engine.Engine, more int) {
	t.Helper()
	before := -1
	e.Eventually("the container writes", func() error {
		n, err := lines(e)
		if err != nil {
			return err
		}
		if before < 0 {
			before = n
		}
		if n < before+more {
			return fmt.Errorf("%d lines, %d before", n, before)
		}
		return nil
	})
}

// assertNothingLost checks that the writer's log has each number from 1 once, in order.
func assertNothingLost(t *testing.T, e *engine.Engine, volume string) {
	t.Helper()
	assert.Positive(t, linesOf(t, e, volume))
}

// linesOf returns how many lines the writer has left in a volume, none of them damaged, and none missing before the last.
func linesOf(t *testing.T, e *engine.Engine, volume string) int {
	t.Helper()
	out := once(e, volume, `awk '$1 != NR { print "line", NR, "is", $1; exit bad = 1 } END { if (!bad) print NR, "lines" }' /data/log || true`)
	n, err := strconv.Atoi(strings.TrimSuffix(out, " lines"))
	assert.NoError(t, err, violation.Textf("lines are lost or damaged: %s", out))
	return n
}

// eventuallyReleased waits until the plugin has no volume mounted and no disk of the engine is attached.
func eventuallyReleased(t *testing.T, e *engine.Engine) {
	t.Helper()
	e.Eventually("the volume is unmounted and detached", func() error { return held(e) })
}

// requireReleased checks the same at once: after a use that is not just Docker's copy-up probe, the disk is free when Docker
// has its answer.
func requireReleased(t *testing.T, e *engine.Engine) {
	t.Helper()
	require.NoError(t, held(e))
}

func held(e *engine.Engine) error {
	for line := range strings.Lines(e.Mounts()) {
		if strings.Contains(line, "/propagated-mount/") {
			return errors.New("mounted: " + line)
		}
	}
	loops, err := namespace.Loops(e.Volumes)
	if err == nil && len(loops) > 0 {
		err = fmt.Errorf("attached: %v", loops)
	}
	return err
}

func TestOneContainerWritesAnotherReads(t *testing.T) {
	e := start(t)
	create(e, "letters")
	once(e, "letters", "echo hello >/data/letter; sleep 2")
	requireReleased(t, e)
	assert.Equal(t, "hello", once(e, "letters", "cat /data/letter"))
	eventuallyReleased(t, e)

	assert.Equal(t, "blockvol:latest letters", e.Docker("volume", "ls", "--format", "{{.Driver}} {{.Name}}"))
	e.Docker("volume", "rm", "letters")
	assert.Empty(t, e.Docker("volume", "ls", "--quiet"))
	images, err := filepath.Glob(filepath.Join(e.Volumes, "disks", "*"))
	require.NoError(t, err)
	assert.Empty(t, images)
}

func TestEachFileSystemHasTheRequestedSize(t *testing.T) {
	e := start(t)
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		create(e, fstype, "fstype="+fstype, "size=320MiB")
		e.Docker("run", "--detach", "--name", fstype, "--volume", fstype+":/data", "busybox", "sleep", "1000")
		assert.Equal(t, fstype, e.Docker("exec", fstype, "awk", `$2 == "/data" { print $3 }`, "/proc/mounts"))
		_, err := e.Try("exec", fstype, "dd", "if=/dev/zero", "of=/data/file", "bs=1M", "count=400")
		require.ErrorContains(t, err, "No space left on device")
		assert.Equal(t, "file", e.Docker("exec", fstype, "ls", "-A", "/data"), "the volume is empty")
		e.Docker("rm", "--force", fstype)
	}
	eventuallyReleased(t, e)
}

func TestTwoContainersShareAVolume(t *testing.T) {
	e := start(t)
	create(e, "shared")
	for _, name := range []string{"first", "second"} {
		e.Docker("run", "--detach", "--name", name, "--volume", "shared:/data", "busybox", "sleep", "1000")
	}
	for _, private := range []string{e.State, e.Volumes, filepath.Join(e.Dir, "docker/plugins/*/propagated-mount")} {
		found, err := filepath.Glob(private)
		require.NoError(t, err)
		require.Len(t, found, 1)
		info, err := os.Stat(found[0])
		require.NoError(t, err)
		assert.Equal(t, os.ModeDir|0o700, info.Mode(), "only root can enter %s", found[0])
	}
	e.Docker("exec", "first", "sh", "-c", "echo from the first >/data/file")
	e.Docker("rm", "--force", "first")
	assert.Equal(t, "from the first", e.Docker("exec", "second", "cat", "/data/file"))
	e.Docker("exec", "second", "touch", "/data/still-mounted")
	e.Docker("exec", "second", "sleep", "2")
	e.Docker("rm", "--force", "second")
	requireReleased(t, e)
}

func TestCopyUpFillsANewVolumeFromTheImage(t *testing.T) {
	e := start(t)
	create(e, "filled")
	const path = "filled:/copyup"
	assert.Equal(t, "from the image", e.Docker("run", "--rm", "--volume", path, "busybox", "cat", "/copyup/file"))
	e.Docker("run", "--rm", "--volume", path, "busybox", "sh", "-c", "echo changed >/copyup/file")
	assert.Equal(t, "changed", e.Docker("run", "--rm", "--volume", path, "busybox", "cat", "/copyup/file"), "a filled volume is not filled again")
	eventuallyReleased(t, e)
}

func TestCopyToAStoppedContainer(t *testing.T) {
	e := start(t)
	create(e, "inbox")
	e.Docker("create", "--name", "reader", "--volume", "inbox:/data", "busybox", "cat", "/data/letter")
	letter := filepath.Join(t.TempDir(), "letter")
	require.NoError(t, os.WriteFile(letter, []byte("copied"), 0o644))
	e.Docker("cp", letter, "reader:/data/letter")
	eventuallyReleased(t, e)
	assert.Equal(t, "copied", e.Docker("start", "--attach", "reader"))
	eventuallyReleased(t, e)
}

func TestContainerThatCannotStartLeavesNothingMounted(t *testing.T) {
	e := start(t)
	create(e, "idle")
	_, err := e.Try("run", "--rm", "--volume", "idle:/data", "busybox", "/no/such/program")
	require.ErrorContains(t, err, "no such file")
	eventuallyReleased(t, e)
}

func TestContainerThatCrashesLeavesNothingMounted(t *testing.T) {
	e := start(t)
	create(e, "crash")
	startWriter(t, e, "crash")
	e.Run("kill", "-9", e.Docker("inspect", "--format", "{{.State.Pid}}", "writer"))
	eventuallyReleased(t, e)
	assertNothingLost(t, e, "crash")
}

func TestVolumeInUseIsNotRemoved(t *testing.T) {
	e := start(t)
	create(e, "used")
	startWriter(t, e, "used")
	_, err := e.Try("volume", "rm", "used")
	require.ErrorContains(t, err, "in use")
	e.Docker("rm", "--force", "writer")
	assertNothingLost(t, e, "used")
	e.Docker("volume", "rm", "used")
	requireReleased(t, e)
}

func TestVolumeFollowsItsContainerToAnotherNode(t *testing.T) {
	here, there := startTwo(t)
	create(here, "moving")
	startWriter(t, here, "moving")

	_, err := there.Try("run", "--rm", "--volume", "moving:/data", "busybox", "true")
	require.Error(t, err, "a volume that a live node holds is not taken")
	require.ErrorContains(t, err, "moving")
	_, err = there.Try("volume", "rm", "moving")
	require.Error(t, err, "or removed")
	awaitLines(t, here, 10)

	here.Docker("rm", "--force", "writer")
	assertNothingLost(t, there, "moving")
	there.Docker("volume", "rm", "moving")
	requireReleased(t, there)
}

func TestManyVolumesAreFormattedAtOnce(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.Busybox()
	e.InstallPlugin(pluginDir, "LOCAL_OVERCOMMIT=true")
	var group errgroup.Group
	for i := range 12 {
		fstype := []string{"ext4", "xfs", "btrfs"}[i%3]
		volume := fmt.Sprintf("%s-%d", fstype, i)
		create(e, volume, "fstype="+fstype, "size=320MiB")
		group.Go(func() error {
			_, err := e.Try("run", "--rm", "--volume", volume+":/data", "busybox", "touch", "/data/file")
			return err
		})
	}
	require.NoError(t, group.Wait())
	eventuallyReleased(t, e)
}
