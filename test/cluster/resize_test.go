package cluster_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
	"github.com/blockvol/blockvol/test/violation"
)

// inTask runs a command in the task that writes.
func inTask(w *cluster.Writer, command ...string) (string, error) {
	node := w.Node()
	task, err := node.TryDocker("ps", "--quiet", "--filter", "name="+w.Service+".")
	if err != nil {
		return "", err
	}
	return node.TryDocker(append([]string{"exec", task}, command...)...)
}

// Somebody enlarges disks in the cloud, and nobody tells blockvol. The kernel of an emulated machine lets a plugin grow ext4, which needs
// a capability that a container may not have.
func TestFileSystemsGrowWhileTheyAreWritten(t *testing.T) {
	long(t)
	c := shared(t)
	var specs []cluster.WriterSpec
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		specs = append(specs, cluster.WriterSpec{Name: "grows-" + fstype, Driver: driverOf("stopped"), Options: []string{"fstype=" + fstype}})
	}
	writers := c.StartWriters(specs...)
	for _, w := range writers {
		_, err := c.Cloud.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
			_, err := r.ModifyVolume(w.Volume().ID, func(v cloud.Volume) (cloud.Shape, error) {
				return cloud.Shape{Size: 2 << 30, Type: v.Type, IOPS: v.IOPS, Throughput: v.Throughput}, nil
			})
			return err
		})
		require.NoError(t, err)
	}
	for _, w := range writers {
		c.Eventually(w.Name+" has the new size", func() error {
			out, err := inTask(w, "df", "-m", "/data")
			if err != nil {
				return err
			}
			fields := strings.Fields(out[strings.LastIndex(out, "\n")+1:])
			if size, err := strconv.Atoi(fields[1]); err != nil || size < 1700 {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
		w.Await("it still writes")
		out, err := inTask(w, "base64", "/data/ledger")
		require.NoError(t, err)
		content, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(out, "\n", ""))
		require.NoError(t, err)
		_, err = ledger.Verify(bytes.NewReader(content))
		require.NoError(t, err, violation.Textf("the ledger of %s is damaged", w.Name))
	}
	c.RemoveWriters(writers[0]) // which checks the ext4 in its image
	for _, w := range writers[1:] {
		c.Manager().Docker("service", "rm", w.Service)
		c.RemoveVolume(w.Name)
	}
	c.NothingLeft()
}
