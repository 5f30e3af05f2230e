package mount

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhatACrashLeftInTheScratchDirectoryIsUnmounted(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	require.NoError(t, h.prepareScratch())
	left := filepath.Join(h.scratch, "vol")
	require.NoError(t, os.Mkdir(left, 0o700))
	must(t, "mount", d.Path, left)

	again, err := New(Config{Published: h.published, Buses: onLoop, Scratch: h.scratch})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, again.Close()) })
	d.isFree(again)
	require.NoDirExists(t, left)
	again.cloneAlwaysAtPath = true
	stage(t, again, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	unstage(t, again, d, "vol")
}

func TestAConfigurationThatCannotWorkIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, cfg := range []Config{
		{},
		{Published: filepath.Join(dir, "missing"), Buses: onLoop, Scratch: t.TempDir()},
		{Published: dir, Buses: onLoop, Scratch: filepath.Join(dir, "staging")},
		{Published: dir, Buses: onLoop, Scratch: dir},
		{Published: dir, Scratch: t.TempDir()},
		{Published: dir, Buses: []string{"abacus"}, Scratch: t.TempDir()},
	} {
		_, err := New(cfg)
		require.Error(t, err)
	}
	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o600))
	_, err := New(Config{Published: dir, Buses: onLoop, Scratch: full})
	require.Error(t, err, "the scratch directory has a file that is not blockvol's")
	require.FileExists(t, filepath.Join(full, "file"))
}
