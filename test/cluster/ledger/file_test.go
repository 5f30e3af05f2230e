package ledger

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func opened(t *testing.T, path string) *File {
	t.Helper()
	l, err := Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // it may be closed
	return l
}

func read(t *testing.T, path string) Summary {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return verified(t, b)
}

func TestReopenedLedgerContinues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	var state Summary
	for range 3 {
		l := opened(t, path)
		assert.Equal(t, state, l.State())
		for range 5 {
			require.NoError(t, l.Append())
		}
		state = l.State()
		require.NoError(t, l.Close())
		assert.Equal(t, state, read(t, path))
	}
	assert.EqualValues(t, 15, state.Last)
}

func TestIncompleteRecordIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	records := made(3, 1)
	for n := 1; n < len(records[2]); n++ {
		require.NoError(t, os.WriteFile(path, joined(records[0], records[1], records[2][:n]), 0o600))
		l := opened(t, path)
		assert.EqualValues(t, 2, l.State().Last)
		assert.Equal(t, n, l.State().Torn)
		require.NoError(t, l.Append())
		require.NoError(t, l.Close())
		s := read(t, path)
		assert.EqualValues(t, 3, s.Last)
		assert.Zero(t, s.Torn)
	}
}

func TestCorruptLedgerIsNotChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	r := made(3, 1)
	r[1][60] ^= 1
	require.NoError(t, os.WriteFile(path, joined(r...), 0o600))
	_, err := Open(path)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "after record 1")
	left, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, joined(r...), left)
}

func TestFailedSyncIsNotRetried(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l := opened(t, path)
	require.NoError(t, l.Append())
	state := l.State()
	syncs := 0
	l.sync = func(*os.File) error { syncs++; return syscall.EIO }
	for range 3 {
		require.ErrorIs(t, l.Append(), syscall.EIO)
	}
	assert.Equal(t, 1, syncs)
	assert.Equal(t, state, l.State())
	assert.EqualValues(t, 2, read(t, path).Last, "nothing is written after the error")
}

// full returns a directory on a file system that a ledger soon fills.
func full(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func TestFailedWriteIsNotInTheState(t *testing.T) {
	path := filepath.Join(full(t), "ledger")
	l := opened(t, path)
	var err error
	for err == nil {
		err = l.Append()
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorIs(t, l.Append(), syscall.ENOSPC)
	require.NoError(t, l.Close())
	s := read(t, path)
	assert.Equal(t, l.State().Last, s.Last)
	assert.Equal(t, l.State().Sum, s.Sum)
}
