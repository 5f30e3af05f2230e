package cluster_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/violation"
)

// A disk is taken by force from a node that has it mounted, and comes back to that node: the file system from before is dead, reaches the
// disk no more, and is not mounted again.
func TestADiskTakenByForceComesBackClean(t *testing.T) {
	long(t)
	tried := map[fronts.Bus]bool{}
	for _, kind := range fronts.All {
		if tried[kind.Bus] {
			continue
		}
		tried[kind.Bus] = true
		t.Run(kind.Name, func(t *testing.T) {
			c := cluster.Start(t, cluster.Config{
				Nodes: 1, Kind: kind, Dir: "../../build/plugin", Log: t.Logf,
				Cloud: cloud.Config{Latency: latency, Times: times},
			})
			t.Cleanup(func() {
				if t.Failed() {
					c.SaveLogs(logs)
				}
			})
			var victims []*victim
			for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
				v := &victim{t: t, c: c, n: c.Nodes[0], fstype: fstype}
				require.NoError(t, v.run("old", "echo first >/data/file; sync; echo in-memory >/data/file"))
				victims = append(victims, v)
			}
			for _, v := range victims {
				v.take()
			}
			for _, v := range victims {
				v.comesBack()
			}
			c.NothingLeft()
		})
	}
}

// victim is a volume whose disk is taken from its node.
type victim struct {
	t      *testing.T
	c      *cluster.Cluster
	n      *cluster.Node
	fstype string
}

func (v *victim) container(name string) string { return name + "-" + v.fstype }

// run starts a container with the volume. Its command goes on.
func (v *victim) run(name, command string) error {
	out, err := v.n.TryDocker("run", "--detach", "--name", v.container(name),
		"--mount", "type=volume,source="+v.fstype+",target=/data,volume-driver=blockvol,volume-opt=size=1GiB,volume-opt=fstype="+v.fstype,
		"busybox", "sh", "-c", "exec 3<>/data/open; "+command+"; while :; do sleep 1; done")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (v *victim) exec(name, command string) (string, error) {
	return v.n.TryDocker("exec", v.container(name), "sh", "-c", command)
}

// take detaches the disk by force, as somebody does in the cloud's console, and waits until the plugin has given the volume up.
func (v *victim) take() {
	v.t.Helper()
	vol, err := v.c.Volume(v.fstype)
	require.NoError(v.t, err)
	require.Len(v.t, vol.Attachments, 1)
	_, err = v.c.Cloud.Do(v.t.Context(), cloud.Call{Aside: true}, func(r *cloud.Request) error {
		_, err := r.DetachVolume(vol.ID, vol.Attachments[0].Instance, "", true)
		return err
	})
	require.NoError(v.t, err)
	v.c.Eventually("the plugin has given up "+v.fstype, func() error {
		log, err := v.n.Try("sh", "-c", `grep -F "A disk was taken from this node while it was mounted" /var/log/dockerd.log | grep "volume=$0" | tail -n 1`, v.fstype)
		if err == nil && log == "" {
			err = errors.New("it does not say so")
		}
		return err
	})
	if v.fstype != "btrfs" {
		out, err := v.exec("old", "cat /data/file")
		require.Error(v.t, err)
		assert.Contains(v.t, out+err.Error(), "Input/output error")
	}
	_, err = v.exec("old", "echo lost | dd of=/data/file conv=fsync")
	require.Error(v.t, err, violation.Textf("%s takes a write to a disk that is not there", v.fstype))
	mounted, err := v.n.Try("sh", "-c", `grep -c "/propagated-mount/$0 " /proc/self/mountinfo || true`, v.fstype)
	require.NoError(v.t, err)
	assert.Equal(v.t, "0", strings.TrimSpace(mounted), "its mount is in the way")
}

// comesBack mounts the volume on the same node again, where the old container still runs.
func (v *victim) comesBack() {
	v.t.Helper()
	err := v.run("new", "true")
	refused := err != nil
	if refused { // a kernel may not mount a file system whose UUID is mounted
		assert.NotEqual(v.t, "ext4", v.fstype, "%v", err)
		assert.Contains(v.t, err.Error(), "which still has the file system from before the disk was taken from this node")
		v.n.Docker("rm", "--force", v.container("old"))
		_, _ = v.n.TryDocker("rm", "--force", v.container("new"))
		v.c.Eventually("it is mounted again", func() error {
			err := v.run("new", "true")
			if err != nil {
				_, _ = v.n.TryDocker("rm", "--force", v.container("new"))
			}
			return err
		})
	}
	content, err := v.exec("new", "cat /data/file && echo second >/data/file && sync")
	require.NoError(v.t, err)
	assert.Contains(v.t, []string{"first", "in-memory"}, strings.TrimSpace(content), violation.Textf("what is on the disk was not written there"))
	if !refused {
		_, err = v.exec("old", "cat /data/file")
		require.Error(v.t, err, violation.Textf("the old container reads what is not on the disk"))
		v.n.Docker("rm", "--force", v.container("old"))
	}
	v.n.Docker("rm", "--force", v.container("new"))
	require.NoError(v.t, v.run("last", "true"))
	content, err = v.exec("last", "cat /data/file")
	require.NoError(v.t, err)
	assert.Equal(v.t, "second", strings.TrimSpace(content), violation.Textf("the old file system has written to the disk"))
	v.n.Docker("rm", "--force", v.container("last"))
	v.c.RemoveVolume(v.fstype)
}
