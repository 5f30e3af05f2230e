package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func statfsBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &st))
	return int64(st.Blocks) * st.Bsize
}

func (d *disk) resize(size int64) {
	d.t.Helper()
	require.NoError(d.t, os.Truncate(d.image, size))
	must(d.t, "losetup", "--set-capacity", d.Path)
}

var fsck = map[string][]string{"ext4": {"e2fsck", "-f", "-n"}, "xfs": {"xfs_repair", "-n"}, "btrfs": {"btrfs", "check", "--readonly"}}

func TestAFileSystemGrowsToItsDevice(t *testing.T) {
	mayGrowExt4 := setCapabilities(t, func(caps uint64) uint64 { return caps })&(1<<unix.CAP_SYS_RESOURCE) != 0
	for _, fstype := range FSTypes() {
		for name, extra := range map[string]int64{
			"a little": 512, "a bit": 200 << 10, "some": 8 * mib, "an odd size": 200*mib + 512*5, "much": 2 << 30,
		} {
			t.Run(fstype+" "+name, func(t *testing.T) {
				h := newHost(t)
				d := formatted(t, h, fstype)
				spec := StageSpec{FSType: fstype, Layout: LayoutData}
				path := stage(t, h, d, "vol", spec)
				before := statfsBytes(t, path)
				require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))
				unstage(t, h, d, "vol")

				d.resize(d.Size + extra)
				spec.Warn = func(err error) { require.ErrorContains(t, err, "CAP_SYS_RESOURCE") }
				path = stage(t, h, d, "vol", spec)
				grown := statfsBytes(t, path) - before
				// The kernel grows ext4 only with CAP_SYS_RESOURCE, and btrfs only to 256 MiB or more.
				kept := fstype == "ext4" && !mayGrowExt4 || fstype == "btrfs" && d.Size+extra < 256*mib
				if kept {
					assert.Zero(t, grown)
				} else if extra >= 8*mib {
					assert.Greater(t, grown, extra*9/10)
				}
				assert.LessOrEqual(t, grown, extra)
				b, err := os.ReadFile(filepath.Join(path, "file"))
				require.NoError(t, err)
				assert.Equal(t, "kept", string(b))
				unstage(t, h, d, "vol")
				must(t, fsck[fstype][0], append(fsck[fstype][1:], d.Path)...)

				path = stage(t, h, d, "vol", spec)
				assert.Equal(t, grown, statfsBytes(t, path)-before, "there is nothing left to grow")
				unstage(t, h, d, "vol")
			})
		}
	}
}

func TestAFileSystemInUseGrows(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "xfs")
	spec := StageSpec{FSType: "xfs", Layout: LayoutData}
	end := inContainer(t, stage(t, h, d, "vol", spec))
	require.NoError(t, h.Unstage(context.Background(), "vol"))
	d.resize(2 * d.Size)
	path := stage(t, h, d, "vol", spec)
	assert.Greater(t, statfsBytes(t, path), d.Size)
	require.NoError(t, h.Unstage(context.Background(), "vol"))
	end()
	d.isFree(h)
}

func TestAStagedFileSystemGrowsWithItsDevice(t *testing.T) {
	mayGrowExt4 := setCapabilities(t, func(caps uint64) uint64 { return caps })&(1<<unix.CAP_SYS_RESOURCE) != 0
	for _, fstype := range FSTypes() {
		for _, layout := range []string{LayoutData, LayoutRoot} {
			t.Run(fstype+" "+layout, func(t *testing.T) {
				ctx := context.Background()
				h := newHost(t)
				d := formatted(t, h, fstype)
				path := stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: layout})
				end := inContainer(t, path)
				before := statfsBytes(t, path)
				size := d.Size
				grown, err := h.Grow(ctx, d.Device, "vol")
				require.NoError(t, err)
				require.False(t, grown, "its device has not")

				const extra = 300 * mib
				d.resize(size + extra)
				dev, err := h.Find(ctx, d.Serial)
				require.NoError(t, err)
				require.Equal(t, size+extra, dev.Size)
				grown, err = h.Grow(ctx, dev, "vol")
				if fstype == "ext4" && !mayGrowExt4 {
					require.ErrorContains(t, err, "CAP_SYS_RESOURCE")
					assert.False(t, grown)
				} else {
					require.NoError(t, err)
					assert.True(t, grown)
					assert.Greater(t, statfsBytes(t, path)-before, extra*9/10)
					grown, err = h.Grow(ctx, dev, "vol")
					require.NoError(t, err)
					assert.False(t, grown, "nothing is left to grow")
				}
				require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("serves on"), 0o600))
				require.NoError(t, h.Unstage(ctx, "vol"))
				end()
				d.isFree(h)
				must(t, fsck[fstype][0], append(fsck[fstype][1:], d.Path)...)
			})
		}
	}
}

func TestOnlyAStagedFileSystemGrows(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d, other := formatted(t, h, "xfs"), formatted(t, h, "xfs")
	path := stage(t, h, other, "vol", StageSpec{FSType: "xfs", Layout: LayoutData})
	before := statfsBytes(t, path)
	d.resize(2 * d.Size)
	other.resize(2 * other.Size)
	for _, dir := range []string{"vol", "none"} {
		grown, err := h.Grow(ctx, d.Device, dir)
		require.ErrorIs(t, err, ErrNotStaged)
		assert.False(t, grown)
	}
	assert.Equal(t, before, statfsBytes(t, path))
	stale := other.Device
	stale.Serial = d.Serial
	_, err := h.Grow(ctx, stale, "vol")
	require.ErrorIs(t, err, ErrWrongDevice)
	unstage(t, h, other, "vol")

	path = stage(t, h, other, "vol", StageSpec{FSType: "xfs", Layout: LayoutData, MountOptions: []string{"ro"}})
	grown, err := h.Grow(ctx, other.Device, "vol")
	require.NoError(t, err)
	assert.False(t, grown, "it is read-only")
	assert.Equal(t, before, statfsBytes(t, path))
	unstage(t, h, other, "vol")
}

func TestAFileSystemThatCannotGrowIsStillMounted(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread has lost a capability and ends with the test
	setCapabilities(t, func(caps uint64) uint64 { return caps &^ (1 << unix.CAP_SYS_RESOURCE) })
	h := newHost(t)
	d := formatted(t, h, "ext4")
	d.resize(2 * d.Size)
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	_, err := h.Stage(context.Background(), d.Device, "vol", spec)
	require.ErrorContains(t, err, "CAP_SYS_RESOURCE")
	d.isFree(h)

	var warned error
	spec.Warn = func(err error) { warned = errors.Join(warned, err) }
	path := stage(t, h, d, "vol", spec)
	require.ErrorContains(t, warned, "CAP_SYS_RESOURCE")
	require.NoError(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o600))
	unstage(t, h, d, "vol")
	must(t, "e2fsck", "-f", "-n", d.Path)
}

// setCapabilities changes the effective capabilities of this thread, and returns the new ones.
func setCapabilities(t *testing.T, change func(uint64) uint64) uint64 {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	require.NoError(t, unix.Capget(&head, &data[0]))
	caps := change(uint64(data[1].Effective)<<32 | uint64(data[0].Effective))
	data[0].Effective, data[1].Effective = uint32(caps), uint32(caps>>32)
	require.NoError(t, unix.Capset(&head, &data[0]))
	return caps
}

func TestExt4Superblocks(t *testing.T) {
	d := newDisk(t, ext4Size)
	read := func() (int64, error) {
		f, err := os.Open(d.Path)
		require.NoError(t, err)
		defer f.Close()
		sb := make([]byte, 1024)
		_, err = f.ReadAt(sb, 1024)
		require.NoError(t, err)
		blocks, size, err := ext4Blocks(sb)
		return int64(blocks * size), err
	}
	_, err := read()
	require.Error(t, err)
	for _, options := range [][]string{{"-b", "1024"}, {"-b", "4096"}, {"-O", "^64bit"}} {
		must(t, "mkfs.ext4", append([]string{"-q", "-F", d.Path}, options...)...)
		bytes, err := read()
		require.NoError(t, err)
		assert.Equal(t, ext4Size, bytes)
	}
	must(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "64bit", "-E", "lazy_itable_init", d.Path)
	d.write([]byte{2}, 1024+0x150) // the high half of a number that needs more than 32 bits
	bytes, err := read()
	require.NoError(t, err)
	assert.Equal(t, ext4Size+2<<32*4096, bytes)
}
