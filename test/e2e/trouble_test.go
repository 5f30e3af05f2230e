package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/namespace"
)

// Tests of problems around the plugin: the operator gets an error, and no data is lost.

// slowPlugin returns a copy of the plugin whose mkfs.ext4 waits until proceed creates a file.
func slowPlugin(t *testing.T) string {
	t.Helper()
	dir := copyPlugin(t)
	static, err := exec.LookPath("busybox")
	require.NoError(t, err)
	out, err := exec.Command("cp", "--dereference", "--remove-destination", static, filepath.Join(dir, "rootfs/usr/bin/sh")).CombinedOutput()
	require.NoError(t, err, string(out))
	mkfs := filepath.Join(dir, "rootfs/usr/sbin/mkfs.ext4")
	require.NoError(t, os.Remove(mkfs))
	require.NoError(t, os.WriteFile(mkfs, []byte("#!/bin/sh\nuntil test -e /data/state/proceed; do sleep 0.1; done\nexec /usr/sbin/mke2fs -t ext4 \"$@\"\n"), 0o755))
	return dir
}

func proceed(t *testing.T, e *engine.Engine) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(e.State, "proceed"), nil, 0o600))
}

func TestRetryJoinsASlowMount(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.Busybox()
	e.InstallPlugin(slowPlugin(t), "CALL_TIMEOUT=2s", "LOG_LEVEL=debug")
	create(e, "slow")

	_, err := e.Try("run", "--rm", "--volume", "slow:/data", "busybox", "true")
	require.ErrorContains(t, err, "being formatted", "the error says what the plugin is doing")
	proceed(t, e)
	e.Eventually("a retry joins the mount", func() error {
		_, err := e.Try("run", "--rm", "--volume", "slow:/data", "busybox", "touch", "/data/file")
		return err
	})
	assert.Equal(t, "file", once(e, "slow", "ls /data"))
	eventuallyReleased(t, e)
}

// Docker gets no answer, sends no Unmount, and does not retry.
func TestMountSlowerThanDockersTimeoutIsRolledBack(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.Busybox()
	e.InstallPlugin(slowPlugin(t), "LOG_LEVEL=debug")
	e.Docker("plugin", "disable", engine.Plugin)
	e.Docker("plugin", "enable", "--timeout", "1", engine.Plugin)
	create(e, "slow")

	_, err := e.Try("run", "--rm", "--volume", "slow:/data", "busybox", "true")
	require.Error(t, err)
	loops, err := namespace.Loops(e.Volumes)
	require.NoError(t, err)
	require.NotEmpty(t, loops, "the mount was over too soon for the test")
	proceed(t, e)
	eventuallyReleased(t, e)
	once(e, "slow", "echo and can be had again >/data/file")
}

func TestMissingProgramIsNamed(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.Busybox()
	dir := copyPlugin(t)
	require.NoError(t, os.Remove(filepath.Join(dir, "rootfs/usr/sbin/mkfs.xfs")))
	e.InstallPlugin(dir)
	create(e, "xfs", "fstype=xfs", "size=320MiB")
	_, err := e.Try("run", "--rm", "--volume", "xfs:/data", "busybox", "true")
	require.ErrorContains(t, err, "mkfs.xfs is not installed")
	eventuallyReleased(t, e)
	create(e, "ext4")
	once(e, "ext4", "touch /data/file")
}

func TestDamagedJournalLosesNothing(t *testing.T) {
	e := start(t)
	create(e, "journaled")
	startWriter(t, e, "journaled")
	e.SettledPluginPID()
	damaged := 0
	require.NoError(t, filepath.WalkDir(filepath.Join(e.State, "journal"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		damaged++
		return os.WriteFile(path, []byte("\x00\x00 not a journal"), 0o600)
	}))
	require.NotZero(t, damaged)
	e.KillPlugin()
	awaitLines(t, e, 10)
	e.Docker("rm", "--force", "writer")
	eventuallyReleased(t, e)
	assertNothingLost(t, e, "journaled")
}

func TestReadOnlyStateDirectoryIsReported(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.Busybox()
	e.Run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", e.State)
	e.InstallPlugin(pluginDir)
	_, err := e.Try("volume", "create", "--driver", "blockvol", "--opt", "size=64MiB", "hopeless")
	require.ErrorContains(t, err, "read-only file system")

	// Fix the cause and restart the plugin: that is enough.
	e.Run("mount", "-o", "remount,rw", "tmpfs", e.State)
	e.Docker("plugin", "disable", engine.Plugin)
	e.Docker("plugin", "enable", engine.Plugin)
	create(e, "hopeful")
	once(e, "hopeful", "touch /data/file")
}

func TestFullDiskReportsAnError(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.Busybox()
	e.Run("mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", e.Volumes)
	e.InstallPlugin(pluginDir)
	create(e, "first")
	once(e, "first", "dd if=/dev/zero of=/data/file bs=1M count=20 2>/dev/null")
	create(e, "second")
	_, err := e.Try("volume", "create", "--driver", "blockvol", "--opt", "size=64MiB", "third")
	require.ErrorContains(t, err, "LOCAL_OVERCOMMIT")
	assert.Equal(t, "20971520", once(e, "first", "wc -c </data/file"))
	e.Docker("volume", "rm", "second")
	create(e, "third")
	e.Docker("volume", "rm", "first", "third") // the end of the engine sees no files in this mount, and none of their loop devices
}

func TestInvalidSettingIsReportedByEachCall(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.InstallPlugin(pluginDir, "TAKEOVER=sometimes")
	_, err := e.Try("volume", "create", "--driver", "blockvol", "any")
	require.ErrorContains(t, err, "TAKEOVER")
	require.ErrorContains(t, err, "never, stopped")
	e.Docker("plugin", "disable", engine.Plugin)
	e.Docker("plugin", "set", engine.Plugin, "TAKEOVER=never")
	e.Docker("plugin", "enable", engine.Plugin)
	create(e, "any")
}

// Not even the plugin of the node that uses the disk is running.
func TestVolumeOfADisabledPluginIsNotTakenByAnotherNode(t *testing.T) {
	here, there := startTwo(t)
	create(here, "kept")
	startWriter(t, here, "kept")
	here.Docker("plugin", "disable", "--force", engine.Plugin)
	_, err := there.Try("run", "--rm", "--volume", "kept:/data", "busybox", "true")
	require.Error(t, err)
	awaitLines(t, here, 10)
	here.Docker("plugin", "enable", engine.Plugin)
	here.Docker("rm", "--force", "writer")
	there.Eventually("the other node can have it", func() error {
		_, err := there.Try("run", "--rm", "--volume", "kept:/data", "busybox", "true")
		return err
	})
	assertNothingLost(t, there, "kept")
}

// An engine that gets "no such volume" drops its record with the labels, and would make a local volume of this name.
func TestPluginWithoutACloudKeepsTheEnginesRecord(t *testing.T) {
	e := start(t)
	e.Docker("volume", "create", "--driver", "blockvol", "--opt", "size=64MiB", "--label", "keep=me", "labelled")
	set := func(cluster string) {
		e.Docker("plugin", "disable", "--force", engine.Plugin)
		e.Docker("plugin", "set", engine.Plugin, "CLUSTER="+cluster)
		e.Docker("plugin", "enable", engine.Plugin)
	}
	set("two words")
	_, err := e.Try("run", "--rm", "--volume", "labelled:/data", "busybox", "touch", "/data/file")
	require.Error(t, err)
	set("default")
	assert.Equal(t, "blockvol:latest me", e.Docker("volume", "inspect", "--format", `{{.Driver}} {{.Labels.keep}}`, "labelled"))
	once(e, "labelled", "test ! -e /data/file")
}

func TestDaemonServesAnEngineWithoutThePluginSystem(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	e.Busybox()
	binary, err := filepath.Abs("../../build/blockvol-" + runtime.GOARCH)
	require.NoError(t, err)
	serve := func() int {
		return e.Spawn("env", "LOCAL_DIR="+e.Volumes, binary, "serve", "--state="+e.State, "--published="+filepath.Join(e.Dir, "published"))
	}
	pid := serve()
	e.Eventually("the daemon is found", func() error {
		_, err := e.Try("volume", "create", "--driver", "blockvol", "--opt", "size=64MiB", "plain")
		return err
	})
	startWriter(t, e, "plain")
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	serve()
	awaitLines(t, e, 10)
	e.Docker("rm", "--force", "writer")
	e.Eventually("the volume is detached", func() error {
		loops, err := namespace.Loops(e.Volumes)
		if err == nil && len(loops) > 0 {
			err = fmt.Errorf("attached: %v", loops)
		}
		return err
	})
	assertNothingLost(t, e, "plain")
	e.Docker("volume", "rm", "plain")
}
