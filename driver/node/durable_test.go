package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/internal/host"
)

// TestEntriesSurviveAPowerFailure keeps a journal on a real ext4 and looks at the disk below it: what an ext4 has not been
// asked to flush stays in the kernel's memory for seconds and is not there yet.
func TestEntriesSurviveAPowerFailure(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 16<<20))
	execute(t, "mkfs.ext4", "-q", disk)
	mounted := mountImage(t, disk)
	j, err := OpenJournal(filepath.Join(mounted, "journal"))
	require.NoError(t, err)
	require.NoError(t, host.SyncDir(mounted)) // the directory itself is as old as the installation

	require.NoError(t, j.Put(testEntry("new", "1")))
	assert.Equal(t, []*Entry{testEntry("new", "1")}, afterPowerFailure(t, disk), "a first entry")
	require.NoError(t, j.Put(testEntry("new", "1", "2")))
	assert.Equal(t, []*Entry{testEntry("new", "1", "2")}, afterPowerFailure(t, disk), "an entry that changed")
	require.NoError(t, j.Remove("new"))
	assert.Empty(t, afterPowerFailure(t, disk), "an entry that was removed")
}

// afterPowerFailure returns the journal as the disk has it at this moment.
func afterPowerFailure(t *testing.T, disk string) []*Entry {
	t.Helper()
	content, err := os.ReadFile(disk)
	require.NoError(t, err)
	left := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(left, content, 0o600))
	j, err := OpenJournal(filepath.Join(mountImage(t, left), "journal"))
	require.NoError(t, err)
	loaded, err := j.Load()
	require.NoError(t, err)
	assert.Empty(t, loaded.Damaged)
	return loaded.Entries
}

func mountImage(t *testing.T, disk string) string {
	t.Helper()
	dir := t.TempDir()
	execute(t, "mount", "-o", "loop", disk, dir)
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func execute(t *testing.T, program string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", program, out)
}
