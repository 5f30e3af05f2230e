package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mounted mounts a new file system of that size for the test.
func mounted(t *testing.T, fstype string, size int64) string {
	t.Helper()
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	require.NoError(t, os.Mkdir(mnt, 0o700))
	run(t, "mkfs."+fstype, "-q", image)
	run(t, "mount", "-o", "loop", image, mnt)
	t.Cleanup(func() { run(t, "umount", mnt) })
	return mnt
}

func run(t *testing.T, name string, arg ...string) string {
	t.Helper()
	out, err := exec.Command(name, arg...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(arg, " "), out)
	return string(out)
}
