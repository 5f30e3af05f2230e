package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func mounts(t *testing.T, lines ...string) []*mountinfo.Info {
	t.Helper()
	all, err := mountinfo.GetMountsFromReader(strings.NewReader(strings.Join(lines, "\n")+"\n"), nil)
	require.NoError(t, err)
	return all
}

func TestPathsAreThoseOfTheMachine(t *testing.T) {
	machine := mounts(t,
		"1 0 8:1 / / rw - ext4 /dev/sda1 rw",
		"2 1 8:2 /images /srv rw - xfs /dev/sdb1 rw",
		"3 1 8:1 /var/lib/docker/plugins/0f/propagated-mount /var/lib/docker/plugins/0f/propagated-mount rw - ext4 /dev/sda1 rw",
		"4 3 7:3 / /var/lib/docker/plugins/0f/propagated-mount/db rw - ext4 /dev/loop3 rw",
	)
	plugin := mounts(t,
		"1 0 0:9 / / rw - overlay overlay rw",
		"2 1 8:1 /var/lib/blockvol/state /data/state rw - ext4 /dev/sda1 rw",
		"3 1 8:2 /images/blue /data/volumes rw - xfs /dev/sdb1 rw",
		"4 1 8:1 /var/lib/docker/plugins/0f/propagated-mount /data/published rw - ext4 /dev/sda1 rw",
		"5 4 7:3 / /data/published/db rw - ext4 /dev/loop3 rw",
	)
	for dir, want := range map[string]string{
		"/data/state/journal": "/var/lib/blockvol/state/journal",
		"/data/volumes":       "/srv/blue",
		"/data/published":     "/var/lib/docker/plugins/0f/propagated-mount",
		"/usr/bin":            "", // the plugin's own
	} {
		assert.Equal(t, want, translate(dir, plugin, machine), dir)
	}
	p := Paths{strings.NewReplacer("/data/volumes", "/srv/blue")}
	assert.Equal(t, `open "/srv/blue/disks/vol-1.img": no space`, p.In(`open "/data/volumes/disks/vol-1.img": no space`))
}

func TestAProcessOfTheMachineKeepsItsPaths(t *testing.T) {
	proc := t.TempDir()
	require.NoError(t, os.Symlink("/proc/self", filepath.Join(proc, "1")))
	assert.Equal(t, Paths{}, NewPaths(proc, "/var/lib/blockvol"))
	assert.Equal(t, "/x/y", NewPaths("/none/such", "/x").In("/x/y"))
}
