package mount

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The engine is another mount namespace, in which the published directory is a peer, a slave, or missing.
func TestSharedSaysWhetherTheEngineSeesMounts(t *testing.T) {
	for name, test := range map[string]struct {
		propagation, script string
		seen                bool
	}{
		"a peer":                         {"unchanged", "", true},
		"its mount was unmounted":        {"unchanged", `umount "$PUBLISHED"`, false},
		"it is nobody's peer":            {"private", "", false},
		"it only receives":               {"slave", "", false},
		"another directory of the peers": {"unchanged", `mkdir "$PUBLISHED/sub"; d=$(mktemp -d); mount --bind "$PUBLISHED/sub" "$d"; umount "$PUBLISHED"`, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			t.Setenv("PUBLISHED", h.published)
			t.Setenv("TMPDIR", t.TempDir())
			h.proc = t.TempDir()
			end := inNewNamespace(t, test.propagation, test.script+"\n"+`mkdir "`+h.proc+`/1"; cat /proc/self/mountinfo >"`+h.proc+`/1/mountinfo"`)
			defer func() { end(); os.Remove(filepath.Join(h.published, "sub")) }() //nolint:errcheck // most cases have none
			seen, err := h.Shared(t.Context())
			require.NoError(t, err)
			assert.Equal(t, test.seen, seen)
		})
	}
}

func TestAnEngineThatIsNotTheFirstProcessIsFound(t *testing.T) {
	h := newHost(t)
	h.proc = t.TempDir()
	processes := map[string]string{"1": "", "20": "", "300": ""}
	end := inNewNamespace(t, "unchanged", `cat /proc/self/mountinfo >"`+h.proc+`/table"`)
	defer end()
	table, err := os.ReadFile(filepath.Join(h.proc, "table"))
	require.NoError(t, err)
	processes["300"] = string(table)
	for pid, table := range processes {
		require.NoError(t, os.Mkdir(filepath.Join(h.proc, pid), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(h.proc, pid, "mountinfo"), []byte(table), 0o600))
	}
	seen, err := h.Shared(t.Context())
	require.NoError(t, err)
	assert.True(t, seen)
}

func TestSharedIgnoresBlockvolsOwnProcesses(t *testing.T) {
	h := newHost(t)
	h.proc = t.TempDir()
	require.NoError(t, os.Symlink("/proc/"+strconv.Itoa(os.Getpid()), filepath.Join(h.proc, "1")))
	seen, err := h.Shared(t.Context())
	require.NoError(t, err)
	assert.False(t, seen)
	require.NoError(t, unix.Mount("", h.published, "", unix.MS_PRIVATE, ""))
	seen, err = h.Shared(t.Context())
	require.NoError(t, err)
	assert.False(t, seen)
}

func TestSharedIsTrueInTheEnginesOwnNamespace(t *testing.T) {
	h := newHost(t)
	seen, err := h.Shared(t.Context())
	require.NoError(t, err)
	assert.True(t, seen)
}
