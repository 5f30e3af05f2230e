package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAVolumeIsFoundFormattedMountedAndUnmounted(t *testing.T) {
	for _, fstype := range FSTypes() {
		for _, atPath := range []bool{false, true} {
			name := fstype
			if atPath {
				name += " on a kernel before 6.15"
			}
			t.Run(name, func(t *testing.T) {
				ctx := context.Background()
				h := newHost(t)
				h.cloneAlwaysAtPath = atPath
				d := newDisk(t, sizes[fstype])

				dev, err := h.Find(ctx, d.Serial)
				require.NoError(t, err)
				require.Equal(t, d.Device, dev)
				c, err := h.Probe(ctx, dev)
				require.NoError(t, err)
				require.Equal(t, Contents{Blank: true}, c)

				require.NoError(t, h.Format(ctx, dev, FormatSpec{FSType: fstype, Size: dev.Size}))
				c, err = h.Probe(ctx, dev)
				require.NoError(t, err)
				require.Equal(t, Contents{FSType: fstype, Found: []string{fstype}}, c)
				busy, err := h.Busy(dev)
				require.NoError(t, err)
				require.False(t, busy)

				spec := StageSpec{FSType: fstype, Layout: LayoutData}
				path, err := h.Stage(ctx, dev, "vol", spec)
				require.NoError(t, err)
				require.Equal(t, filepath.Join(h.published, "vol"), path)
				names, err := os.ReadDir(path)
				require.NoError(t, err)
				assert.Empty(t, names, "a new volume is empty")
				require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("kept"), 0o600))

				again, err := h.Stage(ctx, dev, "vol", spec)
				require.NoError(t, err, "a second call is success")
				assert.Equal(t, path, again)
				up, err := h.IsStaged(ctx, "vol", dev)
				require.NoError(t, err)
				assert.True(t, up)
				busy, err = h.Busy(dev)
				require.NoError(t, err)
				assert.True(t, busy)
				used, err := h.inUse(ctx, dev)
				require.NoError(t, err)
				assert.False(t, used, "only our own mount is there")

				unstage(t, h, d, "vol")
				require.NoDirExists(t, path)
				require.NoError(t, h.Unstage(ctx, "vol"), "a second call is success")
				up, err = h.IsStaged(ctx, "vol", dev)
				require.NoError(t, err)
				assert.False(t, up)
				used, err = h.inUse(ctx, dev)
				require.NoError(t, err)
				assert.False(t, used)

				stage(t, h, d, "vol", spec)
				b, err := os.ReadFile(filepath.Join(path, "file"))
				require.NoError(t, err)
				assert.Equal(t, "kept", string(b))
				unstage(t, h, d, "vol")
			})
		}
	}
}

func TestABusyVolumeStaysMounted(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})

	f, err := os.Create(filepath.Join(path, "open"))
	require.NoError(t, err)
	err = h.Unstage(context.Background(), "vol")
	require.ErrorIs(t, err, ErrBusy)
	require.ErrorContains(t, err, fmt.Sprintf("stays mounted because of process %d (", os.Getpid()))
	up, err := h.IsStaged(context.Background(), "vol", d.Device)
	require.NoError(t, err)
	assert.True(t, up)

	require.NoError(t, f.Close())
	unstage(t, h, d, "vol")
}

func TestStageNeverFormats(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	for _, fstype := range FSTypes() {
		_, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
		require.ErrorIs(t, err, ErrBlank)
	}
	d.requireUntouched()
}

func TestAnotherFileSystemThanTheOneAskedForIsNotMounted(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	_, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: "xfs", Layout: LayoutData})
	require.ErrorIs(t, err, ErrWrongFS)
	require.ErrorContains(t, err, "xfs")
	require.ErrorContains(t, err, "ext4")
}

func TestADiskOfAnotherFormatIsNotMounted(t *testing.T) {
	h := newHost(t)
	for name, c := range map[string]struct {
		write func(d *disk)
		says  string
	}{
		"a format that is no file system": {func(d *disk) { must(t, "mkswap", d.Path) }, "swap"},
		"RAID":                            {func(d *disk) { d.write(mdSuperblock(8), 4096) }, "linux_raid_member"},
		"two file systems": {func(d *disk) {
			other := formatted(t, h, "xfs")
			must(t, "mkfs.ext4", "-q", d.Path)
			superblock := make([]byte, 512)
			f, err := os.Open(other.Path)
			require.NoError(t, err)
			defer f.Close()
			_, err = f.ReadAt(superblock, 0)
			require.NoError(t, err)
			d.write(superblock, 0)
		}, "several formats at once"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, ext4Size)
			c.write(d)
			_, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
			require.ErrorIs(t, err, ErrWrongFS)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestAMountLooksForFileSystemsOnly(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	blkid, err := exec.LookPath("blkid")
	require.NoError(t, err)
	runs := filepath.Join(t.TempDir(), "runs")
	withTool(t, "blkid", fmt.Sprintf("echo $1 $2 >> %s; exec %s \"$@\"", runs, blkid))
	stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	unstage(t, h, d, "vol")
	asked, err := os.ReadFile(runs)
	require.NoError(t, err)
	assert.Equal(t, "--match-types btrfs,ext4,xfs,crypto_LUKS\n", string(asked))
}

func TestAnotherDiskThanTheVolumeIsNotMounted(t *testing.T) {
	h := newHost(t)
	d, other := formatted(t, h, "ext4"), formatted(t, h, "ext4")
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	swapped := d.Device
	swapped.Serial = other.Serial
	_, err := h.Stage(context.Background(), swapped, "vol", spec)
	require.ErrorIs(t, err, ErrWrongDevice)

	stage(t, h, other, "vol", spec)
	_, err = h.Stage(context.Background(), d.Device, "vol", spec)
	require.ErrorIs(t, err, ErrOccupied, "another volume is mounted there")
	up, err := h.IsStaged(context.Background(), "vol", d.Device)
	require.NoError(t, err)
	assert.False(t, up)
	unstage(t, h, other, "vol")
}

func TestAVolumeThatIsCoveredIsNotStaged(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	require.NoError(t, unix.Mount("none", path, "tmpfs", 0, ""))
	up, err := h.IsStaged(context.Background(), "vol", d.Device)
	require.NoError(t, err)
	assert.False(t, up)
	unstage(t, h, d, "vol") // also unmounts what covers it
}

func TestTheMountpointIsBare(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := formatted(t, h, "ext4")
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	bare := filepath.Join(h.published, "vol")

	require.NoError(t, makeMountpoint(bare))
	info, err := os.Stat(bare)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0), info.Mode().Perm())
	require.NoError(t, os.Chmod(bare, 0o777)) // somebody has changed it
	stage(t, h, d, "vol", spec)
	unstage(t, h, d, "vol")

	require.NoError(t, os.Mkdir(bare, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(bare, "lost"), nil, 0o600))
	_, err = h.Stage(ctx, d.Device, "vol", spec)
	require.ErrorIs(t, err, ErrOccupied)
	require.ErrorContains(t, err, "lost")
	require.Error(t, h.Unstage(ctx, "vol"), "what was written there is not removed")
	require.FileExists(t, filepath.Join(bare, "lost"))
	require.NoError(t, os.RemoveAll(bare))

	elsewhere := t.TempDir()
	require.NoError(t, os.Symlink(elsewhere, bare))
	_, err = h.Stage(ctx, d.Device, "vol", spec)
	require.ErrorIs(t, err, ErrOccupied)
	require.Error(t, h.Unstage(ctx, "vol"))
	require.NoError(t, os.Remove(bare))
	d.isFree(h)

	for _, dir := range []string{"", ".", "..", ".hidden", "a/b", "../x", "/x", "nul\x00", strings.Repeat("x", 256)} {
		_, err = h.Stage(ctx, d.Device, dir, spec)
		require.Error(t, err, dir)
		require.Error(t, h.Unstage(ctx, dir), dir)
		_, err = h.IsStaged(ctx, dir, d.Device)
		require.Error(t, err, dir)
	}
	long := strings.Repeat("x", 255)
	stage(t, h, d, long, spec)
	unstage(t, h, d, long)
}

func TestMountOptionsReachTheKernel(t *testing.T) {
	for _, c := range []struct {
		fstype    string
		options   []string
		mount, sb string
	}{
		{"ext4", []string{"noatime", "nosuid", "noexec", "nodev", "commit=7", "defaults"}, "rw,nosuid,nodev,noexec,noatime", "commit=7"},
		{"ext4", []string{"noatime", "relatime", "data=writeback", "sync", "discard"}, "rw,relatime", "data=writeback"},
		{"ext4", []string{"ro", "rw", "lazytime"}, "rw,relatime", "lazytime"},
		{"xfs", []string{"nodiratime", "allocsize=1m"}, "nodiratime", "allocsize=1024k"},
		{"xfs", nil, "rw", "nouuid"},
		{"btrfs", []string{"compress=zstd:3", "strictatime"}, "rw", "compress=zstd:3"},
	} {
		t.Run(strings.Join(append([]string{c.fstype}, c.options...), " "), func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, c.fstype)
			require.NoError(t, CheckOptions(c.fstype, nil, c.options))
			path := stage(t, h, d, "vol", StageSpec{FSType: c.fstype, Layout: LayoutData, MountOptions: c.options})
			m, err := mountAt(path)
			require.NoError(t, err)
			assert.Contains(t, m.Options, c.mount)
			assert.Contains(t, m.VFSOptions, c.sb)
			unstage(t, h, d, "vol")
		})
	}
}

func TestAnOptionThatTheKernelRefusesIsNamed(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	_, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData, MountOptions: []string{"commit=soon"}})
	require.ErrorContains(t, err, "commit")
	t.Log(err)
	d.isFree(h)
}

func TestACopyOfAMountedFileSystemIsMountedBesideIt(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			spec := StageSpec{FSType: fstype, Layout: LayoutData}
			path := stage(t, h, d, "vol", spec)
			require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("origin"), 0o600))
			must(t, "sync", "-f", path)
			snapshot := copyOf(t, d)
			copied, err := h.Stage(context.Background(), snapshot.Device, "copy", spec)
			if fstype == "btrfs" && err != nil { // kernels before 6.7 cannot and must return an error
				require.True(t, errors.Is(err, ErrBusy) || errors.Is(err, ErrWrongDevice), "%v", err)
				snapshot.isFree(h)
				unstage(t, h, d, "vol")
				return
			}
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(copied, "file"), []byte("copy"), 0o600))
			b, err := os.ReadFile(filepath.Join(path, "file"))
			require.NoError(t, err)
			assert.Equal(t, "origin", string(b))
			for dir, dev := range map[string]Device{"vol": d.Device, "copy": snapshot.Device} {
				up, err := h.IsStaged(context.Background(), dir, dev)
				require.NoError(t, err)
				assert.True(t, up)
			}
			up, err := h.IsStaged(context.Background(), "vol", snapshot.Device)
			require.NoError(t, err)
			assert.False(t, up)
			used, err := h.inUse(context.Background(), snapshot.Device)
			require.NoError(t, err)
			assert.False(t, used)
			unstage(t, h, snapshot, "copy")
			unstage(t, h, d, "vol")
		})
	}
}

func TestACancelledCallLeavesNothing(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	ctx, cancel := context.WithCancelCause(context.Background())
	gaveUp := errors.New("the caller gave up")
	cancel(gaveUp)
	_, err := h.Stage(ctx, d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	require.ErrorIs(t, err, gaveUp)
	require.ErrorIs(t, h.Unstage(ctx, "vol"), gaveUp)
	require.NoDirExists(t, filepath.Join(h.published, "vol"))
	d.isFree(h)
}

func TestManyCallsForOneVolumeAtOnce(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			_, err := h.Stage(context.Background(), d.Device, "vol", spec)
			assert.NoError(t, err)
		})
		calls.Go(func() {
			_, err := h.Busy(d.Device)
			assert.NoError(t, err)
		})
	}
	calls.Wait()
	all, err := mountsUnder(h.published)
	require.NoError(t, err)
	mounts := 0
	for _, m := range all {
		if m.Mountpoint == filepath.Join(h.published, "vol") {
			mounts++
		}
	}
	assert.Equal(t, 1, mounts)
	unstage(t, h, d, "vol")
}
