package cluster_test

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
	"github.com/blockvol/blockvol/test/violation"
)

// inTask runs a command in the task that writes.
func inTask(w *cluster.Writer, command ...string) string {
	task := w.Node().Docker("ps", "--quiet", "--filter", "name="+w.Service+".")
	return w.Node().Docker(append([]string{"exec", task}, command...)...)
}

// In an emulated machine the plugin may grow ext4, for which it needs a capability that an engine in a container cannot give. (QEMU
// cannot resize NVMe disks.)
func TestFileSystemsGrowWhileTheyAreWritten(t *testing.T) {
	long(t)
	tried := map[fronts.Bus]bool{fronts.NVMe: true}
	for _, kind := range fronts.All {
		if tried[kind.Bus] || kind.Provider == "linode" { // where a disk keeps its size while it is attached
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
			var specs []cluster.WriterSpec
			for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
				specs = append(specs, cluster.WriterSpec{Name: "grows-" + fstype, Driver: "blockvol", Options: []string{"fstype=" + fstype}})
			}
			for _, w := range c.StartWriters(specs...) {
				out, err := w.Node().Try("sh", "-ec", `exec "$(find /var/lib/docker/plugins/*/rootfs/usr/bin/blockvol | head -n 1)" resize "$0" 20GiB --yes 2>&1`, w.Name)
				require.NoError(t, err, out)
				assert.Contains(t, out, "the disk and its file system have 20GiB")
				df := strings.Fields(inTask(w, "df", "-m", "/data"))
				size, err := strconv.Atoi(df[len(df)-5])
				require.NoError(t, err, df)
				assert.Greater(t, size, 19000)
				w.Await("it still writes")
				content, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(inTask(w, "base64", "/data/ledger"), "\n", ""))
				require.NoError(t, err)
				_, err = ledger.Verify(bytes.NewReader(content))
				require.NoError(t, err, violation.Textf("the ledger of %s is damaged", w.Name))
			}
			for _, spec := range specs {
				c.Manager().Docker("service", "rm", spec.Name)
				c.RemoveVolume(spec.Name)
			}
			c.NothingLeft()
		})
	}
}
