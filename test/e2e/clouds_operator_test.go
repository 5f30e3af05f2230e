package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/fronts"
)

// others are the plugins whose disks are adopted, by cloud: the name for --from, and the tags of a disk of theirs, whose volume is "legacy".
var others = map[string]struct {
	from string
	tags map[string]string
}{
	"aws":          {"rexray", map[string]string{"Name": "legacy"}},
	"digitalocean": {"dostorage", map[string]string{"name": "legacy"}},
	"hetzner":      {"docker-volume-hetzner", map[string]string{"name": "docker-legacy", "label:docker-volume-hetzner": ""}},
	"linode":       {"linode", map[string]string{"label": "legacy", "tags": `["docker-volume-filesystem-ext4"]`, "updated": "2026-01-02T03:04:05"}},
	"openstack":    {"", map[string]string{"name": "legacy"}},
}

// plant makes a disk that another plugin has left, with a file, and returns its id.
func (a *account) plant(t *testing.T, s *server, tags map[string]string) (id string) {
	t.Helper()
	_, err := a.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
		here, _ := a.Instance(s.id)
		v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: 10 << 30}, Zone: here.Zone, Tags: tags})
		id = v.ID
		return err
	})
	require.NoError(t, err)
	cloudtest.WaitFor(t, a.Cloud, id, cloudtest.Detached)
	contents := t.TempDir()
	root := contents
	if a.kind.Provider == "aws" {
		root = filepath.Join(contents, "data") // where rexray's containers have their files
		require.NoError(t, os.Mkdir(root, 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "letter"), []byte("kept"), 0o600))
	out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", "-d", contents, filepath.Join(a.dir, "disks", id)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return id
}

// What an operator does, beside what TestVolumeFollowsItsContainerOnEveryCloud has of it, on one server of each cloud.
func TestOperatorOnEveryCloud(t *testing.T) {
	t.Parallel()
	for _, kind := range fronts.All {
		t.Run(kind.Provider, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && kind.Provider != "hetzner" {
				t.Skip("only in full runs")
			}
			a := openAccount(t, kind)
			s := a.launch(t)
			hasSnapshots := kind.Provider != "hetzner" && kind.Provider != "linode"
			create(s.Engine, "db", "size=10GiB")
			disk := s.Docker("volume", "inspect", "--format", "{{.Status.id}}", "db")
			startWriter(t, s.Engine, "db")
			container := s.Docker("inspect", "--format", "{{.Id}}", "writer")[:12]

			assert.Regexp(t, `(?m)^provider +`+kind.Provider+`$`, operate(t, s.Engine, 0, "status"))
			assert.Regexp(t, `(?m)^db +`+disk+` +10GiB .* container `+container+`$`, operate(t, s.Engine, 0, "status"))
			assert.Regexp(t, `(?m)^node +`+s.id+`$`, operate(t, s.Engine, 0, "inspect", "db"))
			assert.Empty(t, diagnose(t, s.Engine, 0))
			assert.Contains(t, operate(t, s.Engine, 4, "release", "db"), "in use by container "+container)
			assert.Regexp(t, "golden|leave type, iops and throughput out|of type .* cannot be changed", operate(t, s.Engine, 2, "modify", "db", "--type", "golden"))
			if kind.Provider == "aws" { // the one cloud that changes more than the size
				operate(t, s.Engine, 0, "modify", "db", "--iops", "4000", "--throughput", "200")
				assert.Regexp(t, `(?m)^iops +4000$`, operate(t, s.Engine, 0, "inspect", "db"))
			}
			if hasSnapshots {
				assert.Contains(t, operate(t, s.Engine, 0, "modify", "db", "--snapshot-schedule", "@daily", "--snapshot-keep", "7d", "--yes"), "snapshots are taken @daily")
				assert.Regexp(t, `(?m)^snapshot-schedule +@daily$`, operate(t, s.Engine, 0, "inspect", "db"))
				assert.Contains(t, operate(t, s.Engine, 0, "gc", "--removed", "--yes"), "nothing")
			} else {
				assert.Contains(t, operate(t, s.Engine, 2, "modify", "db", "--snapshot-schedule", "@daily"), "this provider has no snapshots")
				assert.Contains(t, operate(t, s.Engine, 2, "gc"), "this provider has no snapshots")
			}

			s.Docker("rm", "--force", "writer")
			operate(t, s.Engine, 0, "release", "db")
			require.NoError(t, held(s.Engine))
			assert.Regexp(t, `(?m) db +mount +\S+ +ok$`, operate(t, s.Engine, 0, "events", "db"))
			var clients errgroup.Group
			for range 2 {
				clients.Go(func() error {
					assert.Regexp(t, "have 20GiB|the disk has 20GiB", operate(t, s.Engine, 0, "resize", "db", "20GiB", "--yes"))
					return nil
				})
			}
			require.NoError(t, clients.Wait())
			operate(t, s.Engine, 0, "forget", "db")
			assert.Empty(t, operate(t, s.Engine, 0, "ls", "--quiet"))
			assert.Regexp(t, `(?m)^`+disk+` +db +20GiB .* kept +comes back with: blockvol adopt `+disk+` db$`, operate(t, s.Engine, 0, "ls", "--all"))
			operate(t, s.Engine, 0, "adopt", disk, "db")
			assertNothingLost(t, s.Engine, "db")
			s.eventuallyReleased()

			// The disks of another plugin.
			other := others[kind.Provider]
			left := a.plant(t, s, other.tags)
			if other.from == "" {
				assert.Contains(t, operate(t, s.Engine, 2, "adopt", "--from", "rexray"), "this provider knows of no other plugins")
				operate(t, s.Engine, 0, "adopt", left, "legacy")
			} else {
				assert.Regexp(t, "(?m)^"+left+" +legacy +10GiB ", operate(t, s.Engine, 0, "adopt", "--from", other.from, "--yes"))
				operate(t, s.Engine, 3, "adopt", "--from", other.from, "--yes")
			}
			assert.Equal(t, "kept", once(s.Engine, "legacy", "cat /data/letter"))
			s.eventuallyReleased()

			s.Docker("volume", "create", "local")
			s.Docker("run", "--rm", "--volume", "local:/data", "busybox", "sh", "-c", "echo hello >/data/page")
			create(s.Engine, "wiki", "size=10GiB")
			operate(t, s.Engine, 0, "import", "wiki", "--from-volume", "local", "--docker-host", s.Host())
			assert.Equal(t, "hello", once(s.Engine, "wiki", "cat /data/page"))
			s.eventuallyReleased()

			jobs := strings.Fields(operate(t, s.Engine, 0, "jobs", "--quiet"))
			require.NotEmpty(t, jobs)
			assert.Contains(t, operate(t, s.Engine, 0, "wait", jobs[len(jobs)-1]), "legacy: ")
			operate(t, s.Engine, 0, "retain", "wiki")
			operate(t, s.Engine, 0, "rm", "wiki", "--yes")
			operate(t, s.Engine, 0, "rm", "db", "--yes") // was adopted, and is kept, too
			operate(t, s.Engine, 0, "rm", "legacy", "--yes")
			assert.Len(t, regexp.MustCompile(` kept +comes back with`).FindAllString(operate(t, s.Engine, 0, "ls", "--all"), -1), 3)
			create(s.Engine, "last", "size=10GiB")
			operate(t, s.Engine, 0, "rm", "last", "--yes")
			s.Eventually("the disk is deleted", func() error {
				if n := len(fronts.Disks(a.Cloud)); n != 3 {
					return fmt.Errorf("%d disks", n)
				}
				return nil
			})
		})
	}
}

// The file system is frozen while the cloud takes the snapshot. The kernel does not thaw it when the plugin dies; the next plugin does.
func TestPluginIsKilledWhileAFileSystemIsFrozen(t *testing.T) {
	if testing.Short() {
		t.Skip("only in full runs")
	}
	t.Parallel()
	a := openAccount(t, fronts.EC2(nil))
	s := a.launch(t)
	create(s.Engine, "db", "size=10GiB")
	s.Docker("run", "--detach", "--name", "writer", "--volume", "db:/data", "busybox", "sh", "-ec",
		`while :; do read -r up _ </proc/uptime; echo $up >>/data/log; sleep 0.01; done`)
	awaitLines(t, s.Engine, 10)
	pid := s.SettledPluginPID()
	heal := a.Inject(cloud.Rule{Action: "CreateSnapshot", Fault: cloud.Hang})
	a.ResetCalls()
	var job errgroup.Group
	job.Go(func() error {
		operate(t, s.Engine, 0, "snapshot", "create", "db")
		return nil
	})
	s.Eventually("the snapshot is asked for", func() error {
		if a.Calls()["CreateSnapshot"] == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	heal()
	require.NoError(t, job.Wait())
	awaitLines(t, s.Engine, 10)
	longest := s.Docker("exec", "writer", "awk", `NR > 1 && $1 - last > most { most = $1 - last } { last = $1 } END { print most }`, "/data/log")
	t.Logf("the container did not write for %s s at most", longest)
	s.Docker("rm", "--force", "writer")
	s.eventuallyReleased()
}
