package mount

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// codesOf returns the codes of what is wrong, and checks that each finding is complete.
func codesOf(t *testing.T, found []Finding) (codes []string) {
	t.Helper()
	for _, f := range found {
		assert.NotEmpty(t, f.Check)
		assert.NotEmpty(t, f.Message)
		assert.Equal(t, f.Code == "", f.Remedy == "", "%v", f)
		if f.Code != "" {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

// machine is one on which nothing is wrong, as Examine sees it.
func machine(t *testing.T) examination {
	t.Helper()
	x := examination{Config: Config{Sysfs: t.TempDir(), Dev: t.TempDir(), Proc: t.TempDir(), Buses: []string{"nvme", "scsi"}}, own: t.TempDir(), release: "6.1.0"}
	for file, content := range map[string]string{
		filepath.Join(x.own, "status"):                                    "Name:\tblockvol\nCapEff:\t000001ffffffffff\n",
		filepath.Join(x.Proc, "filesystems"):                              "nodev\ttmpfs\n\text4\n",
		filepath.Join(x.Proc, "1/mountinfo"):                              "",
		filepath.Join(x.Proc, "1/root/lib/modules/6.1.0/modules.dep"):     "kernel/fs/xfs/xfs.ko.zst: kernel/lib/libcrc32c.ko.zst\n",
		filepath.Join(x.Proc, "1/root/lib/modules/6.1.0/modules.builtin"): "kernel/fs/btrfs/btrfs.ko\n",
		filepath.Join(x.Sysfs, "block/nvme1n1/size"):                      "2048\n",
		filepath.Join(x.Dev, "nvme1n1"):                                   "",
		filepath.Join(x.Sysfs, "block/zram0/size"):                        "2048\n", // on none of the buses
		filepath.Join(x.Sysfs, "block/sdb/size"):                          "0\n",    // without a medium
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	}
	for name, bus := range map[string]string{"nvme1n1": "nvme", "sdb": "scsi"} {
		dir := filepath.Join(x.Sysfs, "block", name, "device")
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, os.Symlink("../../../../"+bus, filepath.Join(dir, "subsystem")))
	}
	return x
}

func TestAMachineThatHasAllIsFoundWell(t *testing.T) {
	needRoot(t)
	found := machine(t).run(t.Context())
	assert.Empty(t, codesOf(t, found))
	checks := make([]string, len(found))
	for i, f := range found {
		checks[i] = f.Check
	}
	assert.Equal(t, []string{"tools", "kernel", "processes", "devices"}, checks)
}

func TestWhatAMachineLacksIsFound(t *testing.T) {
	needRoot(t)
	remove := func(file string) func(*testing.T, examination) {
		return func(t *testing.T, x examination) {
			t.Helper()
			for _, dir := range []string{x.Proc, x.Dev, x.own} {
				_ = os.RemoveAll(filepath.Join(dir, file))
			}
		}
	}
	capabilities := func(mask string) func(*testing.T, examination) {
		return func(t *testing.T, x examination) {
			t.Helper()
			require.NoError(t, os.WriteFile(filepath.Join(x.own, "status"), []byte("CapEff:\t"+mask+"\n"), 0o600))
		}
	}
	for _, c := range []struct {
		name  string
		plant func(*testing.T, examination)
		want  string
		says  string
	}{
		{"no module", func(t *testing.T, x examination) {
			t.Helper()
			require.NoError(t, os.WriteFile(filepath.Join(x.Proc, "1/root/lib/modules/6.1.0/modules.dep"), nil, 0o600))
		}, "filesystem-unsupported", "neither xfs nor a module for it"},
		{"no CAP_SYS_ADMIN", capabilities("000001ffffdfffff"), "capability-missing", "without CAP_SYS_ADMIN"},
		{"no CAP_SYS_RESOURCE", capabilities("000001fffeffffff"), "capability-missing", "without CAP_SYS_RESOURCE"},
		{"hidden processes", remove("1/mountinfo"), "processes-hidden", "none is released"},
		{"no device node", remove("nvme1n1"), "device-node-missing", "has block device nvme1n1"},
		{"no sysfs", func(t *testing.T, x examination) {
			t.Helper()
			require.NoError(t, os.RemoveAll(filepath.Join(x.Sysfs, "block")))
		}, "devices-unreadable", "cannot be listed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := machine(t)
			c.plant(t, x)
			found := x.run(t.Context())
			require.Equal(t, []string{c.want}, codesOf(t, found))
			i := slices.IndexFunc(found, func(f Finding) bool { return f.Code == c.want })
			assert.Contains(t, found[i].Message, c.says)
		})
	}
}

// A plugin may not see the host's modules, and a module that is not loaded is loaded by the first mount.
func TestModulesThatCannotBeSeenAreNotMissing(t *testing.T) {
	needRoot(t)
	x := machine(t)
	require.NoError(t, os.RemoveAll(filepath.Join(x.Proc, "1/root")))
	assert.Empty(t, codesOf(t, x.run(t.Context())))
}

func TestMissingAndBrokenToolsAreFound(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for name := range packages() {
		path, err := exec.LookPath(name)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	t.Setenv("PATH", dir)
	require.Empty(t, codesOf(t, examineTools(t.Context())))
	for name := range packages() {
		path := filepath.Join(dir, name)
		is, err := os.Readlink(path)
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		found := examineTools(t.Context())
		require.Equal(t, []string{"tool-missing"}, codesOf(t, found))
		assert.True(t, strings.HasPrefix(found[0].Message, name+" is not installed"), found[0].Message)

		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho cannot find libblkid.so.1 >&2\nexit 127\n"), 0o700))
		found = examineTools(t.Context())
		require.Equal(t, []string{"tool-broken"}, codesOf(t, found))
		assert.Contains(t, found[0].Message, "libblkid.so.1")
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.Symlink(is, path))
	}
}

func TestThisMachineIsExaminedWithoutAChange(t *testing.T) {
	needRoot(t)
	for _, f := range Examine(t.Context(), Config{Buses: onLoop}) {
		if f.Code != "" { // a container for tests may lack it
			assert.Contains(t, f.Message, "CAP_SYS_RESOURCE")
		}
	}
}

func TestAVolumeThatIsWellIsFoundWell(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			assert.Empty(t, h.Examine(t.Context(), d.Device, ""))
			for _, options := range [][]string{nil, {"ro"}} {
				stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutRoot, MountOptions: options})
				assert.Empty(t, h.Examine(t.Context(), d.Device, "vol"), "mounted with %v", options)
				unstage(t, h, d, "vol")
			}
		})
	}
}

func TestAReadOnlyDeviceIsFound(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	must(t, "blockdev", "--setro", d.Path)
	defer must(t, "blockdev", "--setrw", d.Path)
	found := h.Examine(t.Context(), d.Device, "")
	require.Equal(t, []string{"device-read-only"}, codesOf(t, found))
	assert.Contains(t, found[0].Message, d.Path)
}

func TestADeviceThatIsOfflineIsFound(t *testing.T) {
	h := newHost(t)
	for state, code := range map[string]string{"running": "", "live": "", "offline": "device-offline", "dead": "device-offline", "transport-offline": "device-offline"} {
		fakeSysfs(t, h, map[string]map[string]string{"sdz": {"device/state": state + "\n", "ro": "0\n"}})
		found := codesOf(t, h.Examine(t.Context(), Device{Name: "sdz", Path: "/dev/sdz"}, ""))
		if code == "" {
			assert.Empty(t, found, state)
		} else {
			assert.Equal(t, []string{code}, found, state)
		}
	}
}

func TestAFileSystemThatHadErrorsIsFound(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutRoot})
	require.NoError(t, os.WriteFile(fmt.Sprintf("/sys/fs/ext4/%s/trigger_fs_error", d.Name), []byte("a test"), 0))
	found := h.Examine(t.Context(), d.Device, "vol")
	require.Equal(t, []string{"filesystem-errors"}, codesOf(t, found))
	assert.Contains(t, found[0].Message, "has had 1 errors")
	unstage(t, h, d, "vol")
}

func TestAFileSystemThatBecameReadOnlyIsFound(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			path := stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutRoot})
			fd, err := unix.Fspick(unix.AT_FDCWD, path, unix.FSPICK_CLOEXEC)
			require.NoError(t, err)
			require.NoError(t, unix.FsconfigSetFlag(fd, "ro"))
			require.NoError(t, unix.FsconfigReconfigure(fd))
			require.NoError(t, unix.Close(fd))
			found := h.Examine(t.Context(), d.Device, "vol")
			require.Equal(t, []string{"filesystem-read-only"}, codesOf(t, found))
			unstage(t, h, d, "vol")
		})
	}
}

func TestMountedDirectoriesAreListed(t *testing.T) {
	h := newHost(t)
	dirs, err := h.Mounted()
	require.NoError(t, err)
	assert.Empty(t, dirs)
	one, two := formatted(t, h, "ext4"), formatted(t, h, "ext4")
	stage(t, h, two, "two", StageSpec{FSType: "ext4", Layout: LayoutData})
	path := stage(t, h, one, "one", StageSpec{FSType: "ext4", Layout: LayoutData})
	require.NoError(t, os.Mkdir(filepath.Join(path, "inside"), 0o700))
	require.NoError(t, unix.Mount("tmpfs", filepath.Join(path, "inside"), "tmpfs", 0, ""))
	dirs, err = h.Mounted()
	require.NoError(t, err)
	assert.Equal(t, []string{"one", "two"}, dirs)
	require.NoError(t, unix.Unmount(filepath.Join(path, "inside"), 0))
	unstage(t, h, one, "one")
	unstage(t, h, two, "two")
}
