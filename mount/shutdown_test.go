package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// taken is a volume whose disk is about to be taken from it: a file is open, and what was written last is in memory alone.
type taken struct {
	*disk
	h       *Host
	path    string
	file    *os.File
	written string // what is on the disk
}

func beforeItIsTaken(t *testing.T, h *Host, fstype string) *taken {
	t.Helper()
	d := formatted(t, h, fstype)
	v := &taken{disk: d, h: h, path: stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData}), written: "on the disk"}
	require.NoError(t, os.WriteFile(filepath.Join(v.path, "old"), []byte(v.written), 0o600))
	v.file = v.openIn(t, v.path)
	require.NoError(t, unix.Syncfs(int(v.file.Fd())))
	_, err := v.file.WriteAt([]byte(strings.Repeat("in memory", 1000)), 0)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(v.path, "new"), []byte("in memory"), 0o600))
	return v
}

func (v *taken) openIn(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "old"), os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// moveToContainer keeps a container that has the volume, and has the file open in its mount alone.
func (v *taken) moveToContainer(t *testing.T) (end func()) {
	t.Helper()
	end = inContainer(t, v.path)
	users, err := v.h.Users(t.Context(), v.Device)
	require.NoError(t, err)
	require.Len(t, users, 1)
	inside := v.openIn(t, filepath.Join("/proc", strconv.Itoa(users[0].PID), "root", users[0].Path))
	require.NoError(t, v.file.Close())
	v.file = inside
	return end
}

// requireDown requires that nothing is read from or written to the file system any more.
func (v *taken) requireDown(t *testing.T) {
	t.Helper()
	_, err := v.file.WriteAt([]byte("x"), 0)
	require.ErrorIs(t, err, unix.EIO)
	_, err = v.file.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, unix.EIO)
	require.ErrorIs(t, v.file.Sync(), unix.EIO)
}

func TestAFileSystemThatIsShutDownWritesNothingMore(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			v := beforeItIsTaken(t, h, fstype)
			require.NoError(t, h.Shutdown(t.Context(), v.Device, "vol"))
			before := v.contents()
			v.requireDown(t)
			require.NoError(t, h.Shutdown(t.Context(), v.Device, "vol"), "it is so already")
			unix.Sync()
			require.NoError(t, v.file.Close())
			require.NoError(t, h.Unstage(t.Context(), "vol"))
			v.isFree(h)
			require.Equal(t, before, v.contents(), "the unmount wrote to the disk")

			path := stage(t, h, v.disk, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
			content, err := os.ReadFile(filepath.Join(path, "old"))
			require.NoError(t, err)
			assert.Equal(t, v.written, string(content), "what was in memory reached the disk")
			unstage(t, h, v.disk, "vol")
		})
	}
}

// Docker's own mount of a volume outlives the plugin's.
func TestAFileSystemThatOnlyAContainerHasIsShutDown(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			v := beforeItIsTaken(t, h, fstype)
			end := v.moveToContainer(t)
			require.NoError(t, h.Unstage(t.Context(), "vol"))
			require.NoError(t, h.Shutdown(t.Context(), v.Device, "vol"))
			before := v.contents()
			v.requireDown(t)
			require.NoError(t, h.Shutdown(t.Context(), v.Device, "vol"), "it is so already")
			require.NoError(t, v.file.Close())
			end()
			v.isFree(h)
			require.Equal(t, before, v.contents())
			require.ErrorIs(t, h.Shutdown(t.Context(), v.Device, "vol"), ErrNotStaged)
		})
	}
}

// What waits for it must not wait for ever.
func TestAFrozenFileSystemThatIsShutDownIsThawed(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			v := beforeItIsTaken(t, h, fstype)
			freezeForEver(t, v.path)
			done := writes(filepath.Join(v.path, "waits"))
			require.NoError(t, h.Shutdown(t.Context(), v.Device, "vol"))
			require.Error(t, <-done)
			v.requireDown(t)
			require.NoError(t, v.file.Close())
			unstage(t, h, v.disk, "vol")
		})
	}
}

// The disk comes back as another device while the dead file system is still mounted, as after a forced detach and an attach.
func TestADiskThatComesBackIsNotWrittenToByItsDeadFileSystem(t *testing.T) {
	h := newHost(t)
	v := beforeItIsTaken(t, h, "ext4")
	end := v.moveToContainer(t)
	require.NoError(t, h.Shutdown(t.Context(), v.Device, "vol"))
	require.NoError(t, h.Unstage(t.Context(), "vol"))

	back := filepath.Join(t.TempDir(), "back.img") // another name, since a serial must be unique
	require.NoError(t, os.Link(v.image, back))
	again := attach(t, back)
	path := stage(t, h, again, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	require.NoError(t, os.WriteFile(filepath.Join(path, "old"), []byte("of the second life"), 0o600))
	unstage(t, h, again, "vol")
	before := again.contents()
	v.requireDown(t)
	unix.Sync()
	require.NoError(t, v.file.Close())
	end()
	v.isFree(h)
	require.Equal(t, before, again.contents())
}

// A number that was the disk's may be another's now.
func TestTheFileSystemOfAnotherDiskIsNotShutDown(t *testing.T) {
	h := newHost(t)
	v := beforeItIsTaken(t, h, "ext4")
	other := v.Device
	other.Serial = "another"
	end := inContainer(t, v.path)
	for _, dir := range []string{"vol", "elsewhere"} {
		require.ErrorIs(t, h.Shutdown(t.Context(), other, dir), ErrWrongDevice)
	}
	_, err := v.file.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	end()
	require.NoError(t, v.file.Close())
	unstage(t, h, v.disk, "vol")
	require.ErrorIs(t, h.Shutdown(t.Context(), v.Device, "vol"), ErrNotStaged)
}

// That a kernel cannot shut a btrfs down is said, and nothing is done to it.
func TestABtrfsIsShutDownOrItIsSaidThatItCannotBe(t *testing.T) {
	h := newHost(t)
	v := beforeItIsTaken(t, h, "btrfs")
	err := h.Shutdown(t.Context(), v.Device, "vol")
	if err == nil {
		v.requireDown(t)
	} else {
		require.ErrorIs(t, err, ErrNoShutdown)
		_, err := v.file.WriteAt([]byte("x"), 0)
		require.NoError(t, err)
	}
	require.NoError(t, v.file.Close())
	unstage(t, h, v.disk, "vol")
}

func TestWhatTheKernelKnowsOfADisk(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			v := beforeItIsTaken(t, h, fstype)
			removed, err := h.Removed(v.Device)
			require.NoError(t, err)
			assert.False(t, removed)
			require.NoError(t, h.Answers(t.Context(), v.Device))
			n, err := h.Errors(v.Device)
			require.NoError(t, err)
			assert.Zero(t, n)
			require.NoError(t, v.file.Close())
			unstage(t, h, v.disk, "vol")
		})
	}
	h := newHost(t)
	gone := Device{Name: "loop9999", Path: "/dev/loop9999", Major: 4000, Minor: 9999, Serial: "gone"}
	removed, err := h.Removed(gone)
	require.NoError(t, err)
	assert.True(t, removed)
	require.ErrorIs(t, h.Answers(t.Context(), gone), ErrNoDevice)
	d := newDisk(t, mib)
	other := d.Device
	other.Serial = "another"
	require.ErrorIs(t, h.Answers(t.Context(), other), ErrWrongDevice)
	assert.EqualValues(t, 7, sumOfStats([]byte("write_errs 3\nread_errs 4\nflush_errs 0\n")))
}

func TestADiskThatDoesNotAnswerIsNotWaitedForLonger(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, mib)
	answer := make(chan struct{})
	hung := h.reads.DoChan(d.number().String(), func() (any, error) { <-answer; return nil, nil })
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("too long"))
	defer cancel()
	err := h.Answers(ctx, d.Device)
	require.ErrorIs(t, err, ErrUnreadable)
	require.ErrorContains(t, err, "does not answer: too long")
	close(answer)
	<-hung
}
