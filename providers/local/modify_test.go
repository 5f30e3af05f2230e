package local

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// The machine loses power right after Modify.
func TestAnEnlargementIsDurable(t *testing.T) {
	dir := t.TempDir()
	disk, mnt, cut := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt"), filepath.Join(dir, "cut")
	require.NoError(t, os.Mkdir(mnt, 0o700))
	run(t, "truncate", "--size=2G", disk)
	run(t, "mkfs.btrfs", "-q", disk)
	run(t, "mount", "-o", "loop", disk, mnt)
	p := newMachine(t, mnt).provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	unix.Sync()
	_, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 4 * smallest})
	run(t, "cp", "--sparse=always", disk, cut)
	run(t, "umount", mnt)
	require.NoError(t, err)
	run(t, "mount", "-o", "loop", cut, mnt)
	defer run(t, "umount", mnt)
	require.EqualValues(t, 4*smallest, found(t, p, "db").Size)
	info, err := os.Stat(p.disks.path(v.ID, ready))
	require.NoError(t, err)
	require.EqualValues(t, 4*smallest, info.Size(), "Attach would refuse an image smaller than its description")
}
