package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// header is the part of the disk that the layer keeps for itself, as LUKS does.
const header = 2 * mib

// layered puts another block device on a disk, like encryption: a loop device whose file is the disk, from the end of the header on.
// exclusive makes it open the disk exclusively, as device-mapper does.
func layered(t *testing.T, h *Host, size int64, exclusive bool) (d *disk, top *disk) {
	t.Helper()
	d = newDisk(t, size+header)
	flags := os.O_RDWR
	if exclusive {
		flags |= unix.O_EXCL
	}
	below, err := os.OpenFile(d.Path, flags, 0)
	require.NoError(t, err)
	defer below.Close() // the loop device has its own reference
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	require.NoError(t, err)
	defer control.Close()
	top = &disk{t: t}
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		require.NoError(t, err)
		top.Device = Device{Name: fmt.Sprint("loop", n), Path: fmt.Sprint("/dev/loop", n), Major: 7, Minor: uint32(n), Size: size, Serial: d.Serial}
		node, err := os.OpenFile(top.Path, os.O_RDWR, 0)
		require.NoError(t, err)
		err = unix.IoctlLoopConfigure(int(node.Fd()), &unix.LoopConfig{Fd: uint32(below.Fd()), Info: unix.LoopInfo64{Offset: uint64(header)}})
		require.NoError(t, node.Close())
		if !errors.Is(err, unix.EBUSY) { // another test was quicker
			require.NoError(t, err)
			break
		}
	}
	t.Cleanup(func() { must(t, "losetup", "--detach", top.Path) })
	h.topOf = func(disk Device) (Device, error) {
		if disk.Name == d.Name {
			return top.Device, nil
		}
		return disk, nil
	}
	return d, top
}

func TestTheFileSystemIsMountedFromTheTop(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			ctx := context.Background()
			h := newHost(t)
			d, top := layered(t, h, sizes[fstype], true)
			must(t, "mkfs."+fstype, "-q", top.Path)
			is := func(ask func() (bool, error)) bool {
				yes, err := ask()
				require.NoError(t, err)
				return yes
			}
			busy := func() (bool, error) { return h.Busy(d.Device) }
			used := func(targets ...string) func() (bool, error) {
				return func() (bool, error) { return h.inUse(ctx, d.Device, targets...) }
			}
			require.True(t, is(busy), "the layer holds the disk")
			require.False(t, is(used()), "the layer is not a consumer")

			spec := StageSpec{FSType: fstype, Layout: LayoutData}
			path := stage(t, h, d, "vol", spec)
			m, err := mountAt(path)
			require.NoError(t, err)
			require.True(t, isOf(m, top.Device))
			require.False(t, isOf(m, d.Device))
			require.Equal(t, path, stage(t, h, d, "vol", spec), "a second call is success")
			require.True(t, is(func() (bool, error) { return h.IsStaged(ctx, "vol", d.Device) }))
			target := filepath.Join(sharedDir(t), "target")
			require.NoError(t, h.Bind(ctx, d.Device, "vol", target, true))
			requireShown(t, top, target, true)
			assert.True(t, is(used()))
			assert.False(t, is(used(target)))
			require.NoError(t, h.Unbind(ctx, d.Device, target))
			assert.False(t, is(used()))

			end := inContainer(t, path)
			assert.True(t, is(used()))
			require.NoError(t, h.Unstage(ctx, "vol"))
			assert.True(t, is(used()))
			end()
			top.isFree(h)
			assert.False(t, is(used()))
			assert.True(t, is(busy), "the layer still holds it")
		})
	}
}

func TestTheFileSystemIsCheckedAtTheTop(t *testing.T) {
	h := newHost(t)
	d, top := layered(t, h, ext4Size, true)
	_, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	require.ErrorIs(t, err, ErrBlank)
	must(t, "mkfs.ext4", "-q", top.Path)
	must(t, "debugfs", "-w", "-R", "clri <2>", top.Path) // no root directory
	must(t, "tune2fs", "-c", "1", "-C", "2", top.Path)
	_, err = h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, top.Path)
}

func TestTheDiskIsProvenBlankAndTheTopIsFormatted(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d, top := layered(t, h, ext4Size, false)
	spec := FormatSpec{FSType: "ext4", Size: d.Size}
	inHeader := []byte("LUKS\xba\xbe\x00\x01") // the top does not include it
	d.write(inHeader, 0)
	c, err := h.Probe(ctx, d.Device)
	require.NoError(t, err)
	require.Equal(t, []string{"crypto_LUKS"}, c.Found)
	require.ErrorIs(t, h.Format(ctx, d.Device, spec), ErrNotBlank)
	require.Empty(t, fsOf(t, top), "the top was formatted nevertheless")

	d.write(make([]byte, len(inHeader)), 0)
	require.NoError(t, h.Format(ctx, d.Device, spec))
	require.Equal(t, "ext4", fsOf(t, top))
	c, err = h.Probe(ctx, d.Device)
	require.NoError(t, err)
	require.True(t, c.Blank, "the disk itself was formatted: %v", c.Found)
	stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	unstage(t, h, d, "vol")
}

func fsOf(t *testing.T, d *disk) string {
	t.Helper()
	c, err := blkid(context.Background(), d.Device)
	require.NoError(t, err)
	return c.FSType
}

func TestAFileSystemGrowsToItsTopNotToItsDisk(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d, top := layered(t, h, xfsSize, true)
	must(t, "mkfs.xfs", "-q", top.Path)
	path := stage(t, h, d, "vol", StageSpec{FSType: "xfs", Layout: LayoutData})
	before := statfsBytes(t, path)
	d.resize(2 * xfsSize)
	grown, err := h.Grow(ctx, d.Device, "vol")
	require.NoError(t, err)
	assert.False(t, grown, "the top has not")
	must(t, "losetup", "--set-capacity", top.Path)
	grown, err = h.Grow(ctx, d.Device, "vol")
	require.NoError(t, err)
	assert.True(t, grown)
	assert.Greater(t, statfsBytes(t, path), before*3/2)
	require.NoError(t, h.Unstage(ctx, "vol"))
}

func TestAVolumeIsInUseWhenItsDiskOrItsTopIs(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d, top := layered(t, h, ext4Size, false)
	is := func() (busy, used bool) {
		busy, err := h.Busy(d.Device)
		require.NoError(t, err)
		used, err = h.inUse(ctx, d.Device)
		require.NoError(t, err)
		return busy, used
	}
	busy, used := is()
	require.False(t, busy)
	require.False(t, used)

	f, err := os.OpenFile(top.Path, os.O_RDONLY|unix.O_EXCL, 0)
	require.NoError(t, err)
	busy, used = is()
	assert.True(t, busy, "a program holds the top")
	assert.True(t, used)
	closeExclusive(f)

	must(t, "mkfs.ext4", "-q", d.Path)
	mnt := t.TempDir()
	must(t, "mount", d.Path, mnt)
	busy, used = is()
	assert.True(t, busy, "the disk itself is mounted")
	assert.True(t, used)
	must(t, "umount", mnt)
	d.isFree(h)
}
