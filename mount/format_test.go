package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestADiskWithAnythingOnItIsNotFormatted(t *testing.T) {
	for _, mark := range marks {
		t.Run(mark.name, func(t *testing.T) {
			ctx := context.Background()
			h := newHost(t)
			size := mark.size
			if size == 0 {
				size = 64 * mib
			}
			d := newDisk(t, size)
			if mark.write != nil {
				mark.write(d)
			}
			if mark.make != nil {
				args := strings.Split(strings.ReplaceAll(strings.Join(mark.make, "\x00"), "$", d.Path), "\x00")
				must(t, args[0], args[1:]...)
			}
			must(t, "sync", d.image)
			before := d.contents()

			c, err := h.Probe(ctx, d.Device)
			require.NoError(t, err)
			assert.False(t, c.Blank)
			assert.Contains(t, c.Found, mark.found)

			for fstype := range fsTypes {
				err = h.Format(ctx, d.Device, FormatSpec{FSType: fstype, Size: d.Size})
				require.ErrorIs(t, err, ErrNotBlank)
				require.ErrorContains(t, err, mark.found)
				if mark.found != fstype && mark.found != unknownData {
					err = h.Format(ctx, d.Device, FormatSpec{FSType: fstype, Size: d.Size, Begun: true})
					require.ErrorIs(t, err, ErrNotBlank, "what other software has written is not an unfinished format")
				}
				_, err = h.Stage(ctx, d.Device, "vol", StageSpec{FSType: fstype, Layout: LayoutRoot, MountOptions: []string{"ro"}})
				if mark.found != fstype || mark.name != fstype {
					require.Error(t, err)
				} else {
					require.NoError(t, err)
					unstage(t, h, d, "vol")
				}
			}
			if mark.name != "btrfs" && mark.name != "xfs" && mark.name != "ext4" { // which were mounted
				assert.Equal(t, before, d.contents(), "not a byte was written")
			}
		})
	}
}

func TestAnotherDiskThanTheVolumeIsNotFormatted(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d, other := newDisk(t, ext4Size), newDisk(t, ext4Size)
	format := func(dev Device, size int64) error {
		return h.Format(ctx, dev, FormatSpec{FSType: "ext4", Size: size})
	}

	swapped := d.Device
	swapped.Serial = other.Serial
	require.ErrorIs(t, format(swapped, d.Size), ErrWrongDevice, "the serial is that of another device")

	moved := d.Device
	moved.Path = other.Path
	require.ErrorIs(t, format(moved, d.Size), ErrWrongDevice, "the path is that of another device")

	renumbered := d.Device
	renumbered.Minor = other.Minor
	require.ErrorIs(t, format(renumbered, d.Size), ErrWrongDevice, "the number is that of another device")

	link := d.Device
	link.Path = filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(d.Path, link.Path))
	require.Error(t, format(link, d.Size), "the path is a link")

	require.ErrorIs(t, format(d.Device, d.Size+1), ErrWrongDevice, "the device is smaller than the volume")
	require.ErrorIs(t, format(d.Device, 0), ErrWrongDevice, "the cloud gave no size")

	twin := attach(t, d.image)
	_, err := h.Find(ctx, d.Serial)
	require.ErrorIs(t, err, ErrAmbiguousDevice)
	require.ErrorContains(t, err, twin.Name)
	require.ErrorIs(t, format(d.Device, d.Size), ErrAmbiguousDevice, "two devices have the serial")

	for _, d := range []*disk{d, other} {
		d.requireUntouched()
	}
}

func TestALargerDeviceIsFormatted(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	require.NoError(t, h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size - mib}))
}

func TestADiskThatCannotBeReadIsNotFormatted(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	require.NoError(t, os.Truncate(d.image, ext4Size/2)) // reads beyond it fail now
	blind := exec.Command("blkid", "-p", d.Path)
	_ = blind.Run()
	require.Equal(t, 2, blind.ProcessState.ExitCode(), "blkid must report this disk as empty, or the test is worth nothing")

	_, err := h.Probe(context.Background(), d.Device)
	require.ErrorIs(t, err, ErrUnreadable)
	err = h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size})
	require.ErrorIs(t, err, ErrUnreadable)
	d.requireUntouched()
}

func TestADiskInUseIsNotFormatted(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_EXCL, 0) // as swapon, mdadm, dmsetup and mkfs do
	require.NoError(t, err)
	defer f.Close()

	err = h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size})
	require.ErrorIs(t, err, ErrBusy)
	busy, err := h.Busy(d.Device)
	require.NoError(t, err)
	assert.True(t, busy)
}

func TestWhatIsRefusedTouchesNoDisk(t *testing.T) {
	h, d := newHost(t), newDisk(t, ext4Size)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	begun := func(context.Context) error { t.Error("a format was recorded"); return nil }
	for name, c := range map[string]struct {
		ctx  context.Context
		spec FormatSpec
		is   error
	}{
		"an option that forces":    {context.Background(), FormatSpec{FSType: "ext4", Options: []string{"-F"}, Size: d.Size}, ErrInvalid},
		"an unknown file system":   {context.Background(), FormatSpec{FSType: "zfs", Size: d.Size}, ErrInvalid},
		"a size that is not known": {context.Background(), FormatSpec{FSType: "ext4"}, ErrWrongDevice},
		"a call that has ended":    {ended, FormatSpec{FSType: "ext4", Size: d.Size}, context.Canceled},
	} {
		c.spec.Begin = begun
		require.ErrorIs(t, h.Format(c.ctx, d.Device, c.spec), c.is, name)
		d.requireUntouched()
	}

	must(t, "mkfs.ext4", "-q", d.Path)
	before := d.contents()
	for name, c := range map[string]struct {
		ctx  context.Context
		spec StageSpec
		is   error
	}{
		"an unknown layout":                {context.Background(), StageSpec{FSType: "ext4", Layout: "all"}, ErrInvalid},
		"an option that panics":            {context.Background(), StageSpec{FSType: "ext4", Layout: LayoutData, MountOptions: []string{"errors=panic"}}, ErrInvalid},
		"an option that the kernel lacks":  {context.Background(), StageSpec{FSType: "ext4", Layout: LayoutData, MountOptions: []string{"usrjquota=x"}}, ErrInvalid},
		"a file system that is not there":  {context.Background(), StageSpec{FSType: "xfs", Layout: LayoutData}, ErrWrongFS},
		"a call that has ended in advance": {ended, StageSpec{FSType: "ext4", Layout: LayoutData}, context.Canceled},
	} {
		_, err := h.Stage(c.ctx, d.Device, "data", c.spec)
		require.ErrorIs(t, err, c.is, name)
		d.isFree(h)
	}
	assert.Equal(t, before, d.contents())
}

func TestMkfsGetsItsOptions(t *testing.T) {
	for _, c := range []struct {
		fstype  string
		options []string
		tool    []string
		shows   string
	}{
		{"ext4", []string{"-L", "my label", "-E", "stride=4", "-b1024", "-Estripe_width=16"}, []string{"dumpe2fs", "-h"}, "my label"},
		{"ext4", []string{"-E", "stride=4"}, []string{"dumpe2fs", "-h"}, "RAID stride:              4"},
		{"ext4", nil, []string{"dumpe2fs", "-h"}, "Reserved block count:     0"},
		{"xfs", []string{"-L", "label", "-i", "size=1024"}, []string{"xfs_db", "-r", "-c", "sb 0", "-c", "p inodesize"}, "1024"},
		{"btrfs", []string{"--label=mine", "-n", "32k"}, []string{"btrfs", "inspect-internal", "dump-super"}, "mine"},
	} {
		t.Run(strings.Join(append([]string{c.fstype}, c.options...), " "), func(t *testing.T) {
			h := newHost(t)
			d := newDisk(t, sizes[c.fstype])
			require.NoError(t, h.Format(context.Background(), d.Device, FormatSpec{FSType: c.fstype, Size: d.Size, Options: c.options}))
			assert.Contains(t, must(t, c.tool[0], append(c.tool[1:], d.Path)...), c.shows)
		})
	}
}

func TestAFormatThatFailsLeavesTheDiskBlank(t *testing.T) {
	const partly = `for dev; do :; done; echo half | dd of="$dev" conv=notrunc 2>/dev/null; echo tail | dd of="$dev" bs=1M seek=31 conv=notrunc 2>/dev/null; `
	for name, c := range map[string]struct {
		script string
		cancel bool
	}{
		"mkfs fails":    {partly + "echo mkfs: no luck today >&2; exit 1", false},
		"ctx ends":      {partly + "echo > $0.started; exec sleep 1000", true},
		"mkfs is gone":  {partly + "kill -9 $$", false},
		"mkfs does not": {"exit 0", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			d := newDisk(t, ext4Size)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			t.Run("", func(t *testing.T) {
				withTool(t, "mkfs.ext4", c.script)
				if c.cancel {
					started := filepath.Join(filepath.SplitList(os.Getenv("PATH"))[0], "mkfs.ext4.started")
					go func() {
						for !exists(started) && t.Context().Err() == nil {
							_, _ = os.Stat(started)
						}
						cancel()
					}()
				}
				err := h.Format(ctx, d.Device, FormatSpec{FSType: "ext4", Size: d.Size})
				require.Error(t, err)
				if c.cancel {
					require.ErrorIs(t, err, context.Canceled)
				}
			})
			c, err := h.Probe(context.Background(), d.Device)
			require.NoError(t, err)
			assert.True(t, c.Blank)
			require.NoError(t, h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size}))
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestBeginIsCalledBeforeTheFirstByteIsWritten(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	refused := errors.New("the cloud is away")
	err := h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size, Begin: func(context.Context) error {
		d.requireUntouched()
		return refused
	}})
	require.ErrorIs(t, err, refused)
	d.requireUntouched()

	d.write([]byte{1}, 0)
	err = h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size, Begin: func(context.Context) error {
		assert.Fail(t, "a disk that is not blank is not formatted")
		return nil
	}})
	require.ErrorIs(t, err, ErrNotBlank)
}

func TestACrashDuringAFormat(t *testing.T) {
	for name, remains := range map[string]string{
		"that wrote bytes":       `for dev; do :; done; echo half | dd of="$dev" conv=notrunc 2>/dev/null; `,
		"that wrote a signature": `for dev; do :; done; PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 "$dev"; `,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			h := newHost(t)
			d := newDisk(t, ext4Size)
			pipe := filepath.Join(t.TempDir(), "mkfs runs")
			require.NoError(t, unix.Mkfifo(pipe, 0o600))
			t.Run("", func(t *testing.T) {
				withTool(t, "mkfs.ext4", remains+fmt.Sprintf("echo $$ > '%s'; exec sleep 1000", pipe))
				child := exec.Command("/proc/self/exe")
				child.Env = append(os.Environ(), "MOUNT_TEST_FORMAT="+d.Serial, "MOUNT_TEST_DIR="+t.TempDir())
				var said bytes.Buffer
				child.Stdout, child.Stderr = &said, &said
				require.NoError(t, child.Start())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_ = child.Wait()
					if f, err := os.OpenFile(pipe, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
						f.Close() // it failed: nobody waits for mkfs any more
					}
				}()
				b, err := os.ReadFile(pipe) // until mkfs has written to the disk
				require.NoError(t, err)
				require.NotEmpty(t, b)
				mkfs, err := unix.PidfdOpen(atoi(t, strings.TrimSpace(string(b))), 0)
				require.NoError(t, err)
				defer unix.Close(mkfs)

				require.NoError(t, child.Process.Kill())
				<-ended
				poll := []unix.PollFd{{Fd: int32(mkfs), Events: unix.POLLIN}}
				n, err := unix.Poll(poll, 10_000)
				require.NoError(t, err)
				require.Equal(t, 1, n, "mkfs dies with the process that started it")
			})
			err := h.Format(ctx, d.Device, FormatSpec{FSType: "ext4", Size: d.Size})
			require.ErrorIs(t, err, ErrNotBlank, "without the record nobody knows who has written the bytes")
			require.NoError(t, h.Format(ctx, d.Device, FormatSpec{FSType: "ext4", Size: d.Size, Begun: true}))
			stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
			unstage(t, h, d, "vol")
		})
	}
}

func TestCheckFormatAsksMkfs(t *testing.T) {
	for _, c := range []struct {
		fstype, options string
		size            int64
		says            string
	}{
		{"ext4", "-C 16384", 1 << 30, "requires the bigalloc feature"},
		{"ext4", "-J size=1024", 1 << 30, "journal size too big"},
		{"ext4", "-I 8192", 1 << 30, "invalid inode size"},
		{"ext4", "-N 100000000", 1 << 30, "too big"},
		{"ext4", "-N 100000000", 2 << 40, ""},
		{"xfs", "-d su=64k", 1 << 30, "both data su and data sw"},
		{"xfs", "-d agcount=200", 1 << 30, "too small"},
		{"xfs", "-d agcount=200", 64 << 40, ""},
		{"btrfs", "-n 128k", 1 << 30, "illegal nodesize"},
		{"btrfs", "-n 32k", 64 << 40, ""},
	} {
		err := CheckFormat(t.Context(), FormatSpec{FSType: c.fstype, Size: c.size, Options: strings.Fields(c.options)})
		if c.says == "" {
			require.NoError(t, err, "%v", c)
			continue
		}
		require.ErrorIs(t, err, ErrInvalid, "%v", c)
		require.ErrorContains(t, err, c.says)
		require.NotContains(t, err.Error(), "Usage")
	}
}
