package mount

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// These tests are about what other programs do to a disk while a call works on it.

func TestAFailedFormatLeavesWhatAnotherProgramMounted(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	mnt := t.TempDir()
	err := h.Format(context.Background(), d.Device, FormatSpec{FSType: "xfs", Size: d.Size, Begin: func(context.Context) error {
		must(t, "mkfs.ext4", "-q", d.Path)
		must(t, "mount", d.Path, mnt)
		unix.Sync()
		return nil
	}})
	require.Error(t, err)
	must(t, "umount", mnt)
	require.NoError(t, exec.Command("mount", d.Path, mnt).Run(), "the other's file system is destroyed")
	must(t, "umount", mnt)
}

func TestAFailedFormatLeavesWhatMkfsRefusedToOverwrite(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, xfsSize)
	err := h.Format(context.Background(), d.Device, FormatSpec{FSType: "xfs", Size: d.Size, Begin: func(context.Context) error {
		must(t, "mkfs.ext4", "-q", d.Path) // and closes it
		return nil
	}})
	require.ErrorIs(t, err, ErrNotBlank)
	out, err := exec.Command("blkid", "-p", d.Path).CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(out), "ext4")
}

func TestABtrfsWithADefaultSubvolumeShowsItsRoot(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "btrfs")
	mnt := t.TempDir()
	must(t, "mount", d.Path, mnt)
	must(t, "btrfs", "subvolume", "create", mnt+"/sub")
	must(t, "btrfs", "subvolume", "set-default", mnt+"/sub")
	must(t, "umount", mnt)
	path := stage(t, h, d, "vol", StageSpec{FSType: "btrfs", Layout: LayoutRoot})
	assert.DirExists(t, path+"/sub")
	unstage(t, h, d, "vol")
}

// whileProgramsStart runs check while other goroutines start programs, which have copies of all open files until their exec.
func whileProgramsStart(check func()) {
	stop := make(chan struct{})
	var starters sync.WaitGroup
	for range 2 {
		starters.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("/bin/true").Run()
				}
			}
		})
	}
	check()
	close(stop)
	starters.Wait()
}

func TestADeviceIsFreeAfterAnExclusiveOpen(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	busy := 0
	whileProgramsStart(func() {
		for range 500 {
			f, err := h.open(d.Device, os.O_RDWR|unix.O_EXCL)
			if err != nil {
				busy++
				continue
			}
			closeExclusive(f)
		}
	})
	assert.Zero(t, busy)
}

func TestTheScratchDirectoryIsLeftEmptyWhileProgramsStart(t *testing.T) {
	h := newHost(t)
	h.cloneAlwaysAtPath = true
	d := formatted(t, h, "ext4")
	whileProgramsStart(func() {
		for range 20 {
			if _, err := h.Stage(context.Background(), d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData}); err != nil {
				t.Errorf("not staged: %v", err)
				return
			}
			for h.Unstage(context.Background(), "vol") != nil {
			}
		}
	})
	left, err := os.ReadDir(h.scratch)
	require.NoError(t, err)
	assert.Empty(t, left)
}
