package mount

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// copyOf attaches a copy of the disk as it is now, like a snapshot, or the disk after a power failure.
func copyOf(t *testing.T, d *disk) *disk {
	t.Helper()
	must(t, "sync", d.Path)
	in, err := os.Open(d.Path)
	require.NoError(t, err)
	defer in.Close()
	image := filepath.Join(t.TempDir(), "copy-of-"+d.Serial)
	out, err := os.Create(image)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	return attach(t, image)
}

func TestAFileSystemThatWasNotUnmountedIsRecovered(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			spec := StageSpec{FSType: fstype, Layout: LayoutData}
			path := stage(t, h, d, "vol", spec)
			f, err := os.Create(filepath.Join(path, "file"))
			require.NoError(t, err)
			_, err = f.WriteString("synced")
			require.NoError(t, err)
			require.NoError(t, f.Sync())
			require.NoError(t, f.Close())
			dirty := copyOf(t, d)
			unstage(t, h, d, "vol")

			path = stage(t, h, dirty, "vol", spec)
			b, err := os.ReadFile(filepath.Join(path, "file"))
			require.NoError(t, err)
			assert.Equal(t, "synced", string(b))
			unstage(t, h, dirty, "vol")
		})
	}
}

func TestASmallDamageIsRepaired(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	must(t, "debugfs", "-w", "-R", "set_super_value free_blocks_count 1", d.Path)
	must(t, "debugfs", "-w", "-R", "set_super_value state 0", d.Path)
	stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	unstage(t, h, d, "vol")
	must(t, "e2fsck", "-f", "-n", d.Path)
}

func TestABadlyDamagedFileSystemIsNotMounted(t *testing.T) {
	for fstype, wreck := range map[string]func(d *disk){
		"ext4": func(d *disk) {
			must(d.t, "debugfs", "-w", "-R", "clri <2>", d.Path) // the root directory
			must(d.t, "debugfs", "-w", "-R", "set_super_value state 2", d.Path)
		},
		"xfs": func(d *disk) { d.write(make([]byte, 4096), 512) }, // all but the superblock of the first group
	} {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			wreck(d)
			_, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
			require.ErrorIs(t, err, ErrDamaged)
			d.isFree(h)
		})
	}
}

func TestAFileSystemThatAContainerUsesIsNotChecked(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	path := stage(t, h, d, "vol", spec)
	require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))
	end := inContainer(t, path)
	require.NoError(t, h.Unstage(context.Background(), "vol"))

	withTool(t, "e2fsck", "echo must not run >&2; exit 4")
	path = stage(t, h, d, "vol", spec)
	b, err := os.ReadFile(filepath.Join(path, "file"))
	require.NoError(t, err)
	assert.Equal(t, "kept", string(b))
	require.NoError(t, h.Unstage(context.Background(), "vol"))
	end()
	d.isFree(h)
	_, err = h.Stage(context.Background(), d.Device, "vol", spec)
	require.ErrorIs(t, err, ErrDamaged, "now it is checked")
}

func TestE2fsckExitCodes(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":                            "",
		"exit 1":                            "",
		"exit 2":                            "",
		"exit 3":                            "",
		"exit 4":                            "damaged",
		"exit 5":                            "damaged",
		"echo Bad magic number; exit 8":     "damaged",
		"echo usage; exit 16":               "not checked",
		"exit 32":                           "not checked",
		"kill -9 $$":                        "not checked",
		"echo shared library >&2; exit 127": "not checked",
	} {
		t.Run(script, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, "ext4")
			withTool(t, "e2fsck", script)
			path, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
			switch want {
			case "":
				require.NoError(t, err)
				unstage(t, h, d, "vol")
			case "damaged":
				require.ErrorIs(t, err, ErrDamaged)
			default:
				require.Error(t, err)
				require.NotErrorIs(t, err, ErrDamaged)
			}
			assert.NoDirExists(t, path)
		})
	}
}

func TestAReadOnlyMountChangesNothing(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	stage(t, h, d, "vol", spec)
	unstage(t, h, d, "vol")
	require.NoError(t, os.Truncate(d.image, 2*d.Size))
	must(t, "losetup", "--set-capacity", d.Path)
	before := d.contents()

	withTool(t, "e2fsck", "echo must not run >&2; exit 4")
	spec.MountOptions = []string{"ro"}
	path := stage(t, h, d, "vol", spec)
	require.Error(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o600))
	unstage(t, h, d, "vol")
	assert.Equal(t, before, d.contents())
}
