package e2e_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cloud/loop"
	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/namespace"
	"github.com/blockvol/blockvol/test/violation"
)

// account is an account of any cloud, with loop devices as disks.
type account struct {
	*cloud.Cloud
	kind  fronts.Kind
	front fronts.Front
	disks *loop.Backend
	dir   string // of the disks' images
}

// openAccount returns an account of a cloud with short durations.
func openAccount(t *testing.T, kind fronts.Kind) *account {
	t.Helper()
	dir := namespace.Dir(t)
	disks, err := loop.New(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disks.Close()) })
	cfg := kind.Cloud
	cfg.Latency, cfg.Backend = 20*time.Millisecond, disks
	cfg.Times = cloud.Times{
		Create: 200 * time.Millisecond, Delete: 200 * time.Millisecond, Attach: 400 * time.Millisecond, Detach: 400 * time.Millisecond,
		Stop: 200 * time.Millisecond,
	}
	a := &account{Cloud: cloud.New(cfg), kind: kind, disks: disks, dir: dir}
	t.Cleanup(func() {
		a.Close()
		require.Empty(t, a.Problems(), violation.Prefix+"of the cloud")
	})
	a.front = kind.New(a.Cloud)
	disks.ShowAs(func(volume string) loop.Identity { return kind.Identity(a.front, volume) })
	return a
}

// server is an engine on an instance of any cloud.
type server struct {
	*engine.Engine
	id      string
	account *account
}

// launch returns an engine on a new instance, with the plugin with these settings and flags, which begin with "--", and an image.
func (a *account) launch(t *testing.T, settings ...string) *server {
	t.Helper()
	flags := []string{"--sysfs=/data/state/sysfs"}
	settings = slices.DeleteFunc(settings, func(s string) bool {
		isFlag := strings.HasPrefix(s, "--")
		if isFlag {
			flags = append(flags, s)
		}
		return isFlag
	})
	s := &server{Engine: engine.Start(t), id: a.AddInstance(a.kind.Instance).ID, account: a}
	require.NoError(t, a.disks.Sysfs(s.id, filepath.Join(s.State, "sysfs")))
	api, metadata := serve(t, s.Engine, "127.0.0.1:0", a.front), serve(t, s.Engine, "127.0.0.1:0", a.front.Metadata(s.id))
	s.Busybox()
	settings = append(settings, a.kind.Settings(a.front, s.id, "http://"+api, "http://"+metadata)...)
	s.InstallPlugin(pluginDir, append(settings, "PROVIDER="+a.kind.Provider, "LOG_LEVEL=debug", "CALL_TIMEOUT=10s", "args="+strings.Join(flags, " "))...)
	return s
}

// eventuallyReleased waits until the plugin has no volume mounted and the instance has none attached.
func (s *server) eventuallyReleased() {
	s.Eventually("the volume is unmounted and detached", func() error {
		for _, v := range fronts.Disks(s.account.Cloud) {
			if len(v.Attachments) > 0 && v.Attachments[0].Instance == s.id {
				return fmt.Errorf("%s is %s", v.ID, v.Attachments[0].State)
			}
		}
		return held(s.Engine)
	})
}

// isLarge tells whether the file system at /data has more than 15 GiB.
const isLarge = `df -m /data | awk 'NR == 2 { print ($2 > 15360) ? "true" : "false" }'`

// resize enlarges a volume in use to 20 GiB, or sees that the cloud refuses and why.
func (a *account) resize(t *testing.T, s *server, name string) (resized bool) {
	t.Helper()
	if a.kind.Provider == "linode" { // a device there keeps its size while it is attached
		assert.Contains(t, operate(t, s.Engine, 4, "resize", name, "20GiB", "--yes"), "when it is detached")
		return false
	}
	assert.Contains(t, operate(t, s.Engine, 0, "resize", name, "20GiB", "--yes"), "the disk and its file system have 20GiB")
	assert.Equal(t, "true", s.Docker("exec", "writer", "sh", "-c", isLarge))
	awaitLines(t, s.Engine, 10)
	return true
}

// copies are what a test has made of a volume in use.
type copies struct {
	snapshot string // its id; empty where the cloud has none
	lines    int    // in the snapshot
}

// copy takes a snapshot of the volume that the writer on a server uses, and makes volumes of the snapshot and of the volume.
func (a *account) copy(t *testing.T, here, there *server, name string) (c copies) {
	t.Helper()
	if a.kind.Provider == "hetzner" || a.kind.Provider == "linode" {
		assert.Contains(t, operate(t, here.Engine, 2, "snapshot", "create", name), "this provider has no snapshots")
		assert.Contains(t, operate(t, here.Engine, 2, "clone", name, "copied"), `option "from" is not available with this provider`)
		return c
	}
	written, err := lines(here.Engine)
	require.NoError(t, err)
	c.snapshot = strings.TrimSpace(operate(t, here.Engine, 0, "snapshot", "create", name, "--quiet"))
	// A machine that is too busy to freeze the file system in time goes on without.
	assert.Regexp(t, "was frozen for|as after a power failure", operate(t, here.Engine, 0, "jobs"))
	assert.Regexp(t, `(?m)^`+c.snapshot+` +`+name+` +\d+GiB .* complete +by hand$`, operate(t, there.Engine, 0, "snapshot", "ls"))
	operate(t, there.Engine, 0, "snapshot", "restore", c.snapshot, "restored")
	operate(t, there.Engine, 0, "clone", name, "copied")
	c.lines = linesOf(t, there.Engine, "restored")
	assert.GreaterOrEqual(t, c.lines, written, violation.Textf("what was written before the snapshot is not in it"))
	assert.GreaterOrEqual(t, linesOf(t, there.Engine, "copied"), written)
	there.eventuallyReleased()
	there.Docker("volume", "rm", "restored", "copied")
	awaitLines(t, here.Engine, 10)
	return c
}

// putBack puts the unused volume back to its snapshot, and deletes what is left of that.
func (a *account) putBack(t *testing.T, s *server, name string, c copies) {
	t.Helper()
	if c.snapshot == "" {
		return
	}
	operate(t, s.Engine, 0, "snapshot", "restore", c.snapshot, name, "--replace", "--yes")
	assert.Equal(t, c.lines, linesOf(t, s.Engine, name))
	volumes := strings.Fields(operate(t, s.Engine, 0, "ls", "--quiet"))
	require.Len(t, volumes, 2)
	require.True(t, strings.HasPrefix(volumes[1], name+".before-"), "%q", volumes)
	assert.Greater(t, linesOf(t, s.Engine, volumes[1]), c.lines, violation.Textf("what the volume was before is lost"))
	s.eventuallyReleased()
	s.Docker("volume", "rm", volumes[1])
	operate(t, s.Engine, 0, "snapshot", "rm", c.snapshot, "--yes")
	assert.Empty(t, operate(t, s.Engine, 0, "snapshot", "ls", "--quiet"))
}

// A volume whose name few clouds allow is created, follows its container, survives the stop of its server, and is deleted.
func TestVolumeFollowsItsContainerOnEveryCloud(t *testing.T) {
	t.Parallel()
	for _, kind := range fronts.All {
		t.Run(kind.Provider, func(t *testing.T) {
			t.Parallel()
			const name = "Shop_data.2026-with-a-name-that-is-longer-than-most-clouds-allow-for-a-label"
			a := openAccount(t, kind)
			here, there := a.launch(t), a.launch(t)
			create(here.Engine, name, "fstype=xfs", "size=10GiB")
			require.Len(t, fronts.Disks(a.Cloud), 1)
			there.Eventually("it is listed everywhere", func() error {
				if listed := there.Docker("volume", "ls", "--quiet"); listed != name {
					return fmt.Errorf("%q", listed)
				}
				return nil
			})
			startWriter(t, here.Engine, name)
			assert.Equal(t, "xfs", here.Docker("exec", "writer", "awk", `$2 == "/data" { print $3 }`, "/proc/mounts"))
			_, err := there.Try("run", "--rm", "--volume", name+":/data", "busybox", "true")
			require.ErrorContains(t, err, "still attached to node "+here.id+": ")
			_, err = there.Try("volume", "rm", name)
			require.Error(t, err, "or removed")
			awaitLines(t, here.Engine, 10)
			assert.Regexp(t, "(?m)^"+name+` +10GiB +(?:\S+ \(\d+%\) +)?mounted +`+here.id, operate(t, here.Engine, 0, "ls"))
			assert.Regexp(t, "(?m)^"+name+` +10GiB +attached +`+here.id, operate(t, there.Engine, 0, "ls"))
			resized := a.resize(t, here, name)
			copied := a.copy(t, here, there, name)

			here.Docker("rm", "--force", "writer")
			assertNothingLost(t, there.Engine, name)
			there.eventuallyReleased()

			a.putBack(t, there, name, copied)
			there.eventuallyReleased()
			if !resized {
				operate(t, there.Engine, 0, "resize", name, "20GiB", "--yes")
			}
			startWriter(t, here.Engine, name)
			assert.Equal(t, "true", here.Docker("exec", "writer", "sh", "-c", isLarge))
			here.Docker("exec", "writer", "sync", "-f", "/data/log")
			here.PowerOff()
			a.Stop(here.id)
			assert.Equal(t, "1", once(there.Engine, name, "head -n 1 /data/log"))
			assert.Regexp(t, `Volume is taken over .*evidence=.*`+here.id, there.Log())
			there.eventuallyReleased()
			there.Docker("volume", "rm", name)
			there.Eventually("the volume is deleted", func() error {
				if left := fronts.Disks(a.Cloud); len(left) > 0 {
					return fmt.Errorf("%+v", left)
				}
				return nil
			})
		})
	}
}

// If the image has something at the mountpoint, Docker mounts the volume before the start for its copy-up, unmounts it, and
// mounts it for the container. The volume must be attached once.
func TestCopyUpProbeCostsNoAttach(t *testing.T) {
	t.Parallel()
	a := openAccount(t, fronts.EC2(nil))
	s := a.launch(t)
	create(s.Engine, "data", "size=10GiB")
	s.Eventually("a start attaches once", func() error { // repeated, since a slow machine can exceed the grace period
		a.ResetCalls()
		require.Equal(t, "from the image", s.Docker("run", "--rm", "--volume", "data:/copyup", "busybox", "cat", "/copyup/file"))
		s.eventuallyReleased()
		if calls := a.Calls(); calls["AttachVolume"] != 1 {
			return fmt.Errorf("%v", calls)
		}
		return nil
	})
	s.Docker("volume", "rm", "data")
}
