package e2e_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

func TestOperatorSeesGrowsAndReleasesVolumes(t *testing.T) {
	e := start(t)
	create(e, "db", "size=300MiB", "fstype=xfs")
	create(e, "idle")
	assert.Equal(t, "db\nidle\n", operate(t, e, 0, "ls", "--quiet"))
	assert.Regexp(t, `(?m)^state +serving$`, operate(t, e, 0, "status"))

	startWriter(t, e, "db")
	id := strings.TrimSpace(e.Docker("inspect", "--format", "{{.Id}}", "writer"))
	assert.Regexp(t, `(?m)^db +300MiB +(?:\S+ \(\d+%\) +)?mounted`, operate(t, e, 0, "ls"))
	assert.Regexp(t, `(?m)^db +vol-\w+ +300MiB +(?:\S+ \(\d+%\) +)?mounted +/dev/loop\d+ +1 +container `+id[:12]+`$`, operate(t, e, 0, "status"))
	mountpoint := e.Docker("volume", "inspect", "--format", "{{.Mountpoint}}", "db")
	assert.Equal(t, "log", e.Run("ls", mountpoint), "paths are the host's")
	assert.Regexp(t, "(?m)^mountpoint +"+mountpoint+"$", operate(t, e, 0, "inspect", "db"))
	assert.Regexp(t, "(?m)^image +"+e.Volumes+"/disks/vol-", operate(t, e, 0, "inspect", "db"))
	assert.Contains(t, operate(t, e, 4, "release", "db"), "in use by container "+id[:12]+" on this node")
	assert.Regexp(t, `"container": "`+id+`",\s+"pid": \d+,\s+"command": "sh",\s+"path": "/data"`, operate(t, e, 0, "inspect", "db", "--json"))

	// A resize goes on through a restart of the plugin, and its client with it. The kills are spread over its time.
	for i, size := range []string{"400MiB", "450MiB", "512MiB"} {
		pid := e.SettledPluginPID()
		var resize errgroup.Group
		resize.Go(func() error {
			assert.Contains(t, operate(t, e, 0, "resize", "db", size, "--yes"), "the disk and its file system have "+size)
			return nil
		})
		time.Sleep(time.Duration(i) * 60 * time.Millisecond) // the kill happens at this time
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		require.NoError(t, resize.Wait())
	}
	assert.Equal(t, "true", e.Docker("exec", "writer", "sh", "-c", `df -m /data | awk 'NR == 2 { print ($2 > 400) ? "true" : "false" }'`))
	awaitLines(t, e, 10)
	assert.Contains(t, operate(t, e, 2, "resize", "db", "300MiB", "--yes"), "cannot shrink")
	assert.Contains(t, operate(t, e, 2, "resize", "db", "1GiB"), "give --yes")
	assert.Contains(t, operate(t, e, 3, "inspect", "none"), "no such volume")
	assert.Regexp(t, `(?m)^\w+ +modify +db +done .*have 512MiB$`, operate(t, e, 0, "jobs"))

	assert.Contains(t, operate(t, e, 0, "modify", "db", "--snapshot-schedule", "@yearly", "--snapshot-keep", "3", "--yes"), "snapshots are taken @yearly")
	assert.Contains(t, operate(t, e, 2, "modify", "db", "--type", "fast"), "leave type, iops and throughput out")
	assert.Contains(t, operate(t, e, 0, "gc", "--removed", "--yes"), "nothing to delete")
	assert.Contains(t, operate(t, e, 2, "adopt", "--from", "rexray"), "knows of no other plugins")
	jobs := strings.Fields(operate(t, e, 0, "jobs", "--quiet"))
	assert.Contains(t, operate(t, e, 2, "wait", jobs[len(jobs)-1]), "leave type, iops and throughput out")

	e.Docker("rm", "--force", "writer")
	operate(t, e, 0, "release", "db")
	requireReleased(t, e)
	assert.Regexp(t, `(?m) +detaching +\S+$`, operate(t, e, 0, "events", "db"))

	// Its disk goes and comes back with its data.
	disk := e.Docker("volume", "inspect", "--format", "{{.Status.id}}", "db")
	operate(t, e, 0, "forget", "db")
	assert.Regexp(t, `(?m)^`+disk+` +db +512MiB .* kept +comes back with: blockvol adopt `+disk+` db$`, operate(t, e, 0, "ls", "--all"))
	assert.Equal(t, "idle\n", operate(t, e, 0, "ls", "--quiet"))
	operate(t, e, 0, "adopt", disk, "db")
	operate(t, e, 0, "retain", "idle")
	assert.Contains(t, operate(t, e, 2, "rm", "idle"), "Its disk is kept")
	operate(t, e, 0, "rm", "idle", "--yes")
	assertNothingLost(t, e, "db")

	// The plugin is killed in the middle of each job, which the next one ends.
	snapshot := strings.TrimSpace(operate(t, e, 0, "snapshot", "create", "db", "--quiet"))
	for i, command := range [][]string{
		{"snapshot", "create", "db"}, {"clone", "db", "copy"}, {"snapshot", "restore", snapshot, "restored"}, {"snapshot", "restore", snapshot, "db", "--replace", "--yes"},
	} {
		pid := e.SettledPluginPID()
		var job errgroup.Group
		job.Go(func() error {
			operate(t, e, 0, command...)
			return nil
		})
		time.Sleep(time.Duration(i+1) * 20 * time.Millisecond) // the kill happens at this time
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		require.NoError(t, job.Wait())
	}
	assert.Len(t, strings.Fields(operate(t, e, 0, "snapshot", "ls", "db", "--quiet")), 2)
	assert.Regexp(t, `^copy\ndb\ndb\.before-[0-9a-f]{8}\nrestored\n$`, operate(t, e, 0, "ls", "--quiet"))
	assert.Equal(t, linesOf(t, e, "db"), linesOf(t, e, "restored"))
	assertNothingLost(t, e, "copy")

	// The contents of a local volume. The command is killed, then the plugin; the next import has it all.
	e.Docker("volume", "create", "local")
	e.Docker("run", "--rm", "--volume", "local:/data", "busybox", "sh", "-ec", `cd /data; mkdir a; echo hello >a/file; ln a/file a/other; chown 999:998 a a/file; chmod 700 .; dd if=/dev/urandom of=big bs=1M count=40`)
	create(e, "filled", "size=200MiB")
	importing := []string{"import", "filled", "--from-volume", "local", "--docker-host", e.Host()}
	for i := range 2 {
		killed := strconv.Itoa(100 + 100*i)
		e.Run("sh", append([]string{"-c", `time=$1; shift; "$@" >/dev/null 2>&1 & sleep 0.$time; kill -9 $! || :`, "sh", killed, pluginBinary(t)}, importing...)...) // the kill happens at this time
	}
	outside := exec.Command(pluginBinary(t), importing...) // with the machine's mounts, not the engine's
	outside.Env = append(os.Environ(), "BLOCKVOL_ENGINE_RUNTIME="+e.Path("/run/docker"))
	out, err := outside.CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "this command does not see that")
	pid := e.SettledPluginPID()
	var job errgroup.Group
	job.Go(func() error {
		assert.Contains(t, operate(t, e, 0, importing...), "filled: holds what local volume local does, 5 files")
		return nil
	})
	time.Sleep(150 * time.Millisecond) // the kill happens at this time
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	require.NoError(t, job.Wait())
	e.Docker("run", "--detach", "--name", "both", "--volume", "local:/local:ro", "--volume", "filled:/filled", "busybox", "sleep", "1h")
	const listed = `cd "$1"; find . -exec stat -c '%n %f %u %g %h %Y' {} + | sort; find . -type f -exec sha256sum {} + | sort`
	assert.Equal(t, e.Docker("exec", "both", "sh", "-ec", listed, "sh", "/local"), e.Docker("exec", "both", "sh", "-ec", listed, "sh", "/filled"))
	assert.Contains(t, operate(t, e, 4, importing...), `local volume "local" is used by both`)

	// Nobody but root gets anything. The binary is where its user can run it.
	e.Run("cp", pluginBinary(t), "/run/blockvol")
	for _, call := range []string{"ls", "status", "doctor", "release db", "resize db 1GiB --yes"} {
		out := e.Run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "/run/blockvol "+call+" 2>&1; echo $?")
		assert.Equal(t, "blockvol: only root may talk to blockvol; run this command with sudo\n5", out)
	}
}
