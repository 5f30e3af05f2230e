package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// staged returns a host with a new volume staged at "vol", the volume's path, and a shared directory for targets.
func staged(t *testing.T, fstype string, options ...string) (h *Host, d *disk, path, dir string) {
	t.Helper()
	h = newHost(t)
	d = formatted(t, h, fstype)
	path = stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData, MountOptions: options})
	return h, d, path, sharedDir(t)
}

// requireShown requires that the file system of the disk is on top at the target, once, writable or not.
func requireShown(t *testing.T, d *disk, target string, readOnly bool) {
	t.Helper()
	m, err := mountAt(target)
	require.NoError(t, err)
	require.NotNil(t, m, "nothing is mounted at %s", target)
	require.True(t, isOf(m, d.Device), "%d:%d is mounted at %s", m.Major, m.Minor, target)
	require.Equal(t, "/"+dataDir, m.Root)
	require.Equal(t, readOnly, isReadOnly(m))
	all, err := mountsUnder(target)
	require.NoError(t, err)
	require.Len(t, all, 1, "mounts at %s", target)
	err = os.WriteFile(filepath.Join(target, "written"), []byte(target), 0o600)
	if readOnly {
		require.ErrorIs(t, err, unix.EROFS)
		return
	}
	require.NoError(t, err)
}

func TestAVolumeIsShownAtSeveralTargetsReadOnlyAndNot(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			ctx := context.Background()
			h, d, path, dir := staged(t, fstype)
			targets := map[string]bool{filepath.Join(dir, "one"): false, filepath.Join(dir, "reader"): true, filepath.Join(dir, "two"): false}
			for range 2 { // a second call is success, and mounts nothing
				for target, readOnly := range targets {
					require.NoError(t, h.Bind(ctx, d.Device, "vol", target, readOnly))
					requireShown(t, d, target, readOnly)
				}
			}
			writer, err := os.Create(filepath.Join(dir, "one", "file"))
			require.NoError(t, err)
			_, err = writer.WriteString("seen by all")
			require.NoError(t, err)
			require.NoError(t, writer.Close())
			for _, at := range []string{path, filepath.Join(dir, "reader"), filepath.Join(dir, "two")} {
				b, err := os.ReadFile(filepath.Join(at, "file"))
				require.NoError(t, err)
				assert.Equal(t, "seen by all", string(b))
			}
			require.ErrorIs(t, os.Remove(filepath.Join(dir, "reader", "file")), unix.EROFS)

			for target := range targets {
				for range 2 {
					require.NoError(t, h.Unbind(ctx, d.Device, target))
					require.NoDirExists(t, target)
				}
			}
			up, err := h.IsStaged(ctx, "vol", d.Device)
			require.NoError(t, err)
			assert.True(t, up, "it stays staged without a consumer")
			unstage(t, h, d, "vol")
		})
	}
}

// A consumer outlives the staged mount, as a container outlives the engine that started it.
func TestATargetKeepsTheFileSystemWhenTheStagedMountGoes(t *testing.T) {
	ctx := context.Background()
	h, d, path, dir := staged(t, "ext4")
	target := filepath.Join(dir, "target")
	require.NoError(t, h.Bind(ctx, d.Device, "vol", target, false))
	require.NoError(t, h.Unstage(ctx, "vol"))
	requireShown(t, d, target, false)
	busy, err := h.Busy(d.Device)
	require.NoError(t, err)
	assert.True(t, busy)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, h.WaitFree(short, d.Device), "blockvol itself, which has it mounted at "+target)

	require.ErrorIs(t, h.Bind(ctx, d.Device, "vol", filepath.Join(dir, "another"), false), ErrNotStaged)
	require.NoDirExists(t, filepath.Join(dir, "another"))
	require.Equal(t, path, stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData}), "it is staged again")
	require.NoError(t, h.Bind(ctx, d.Device, "vol", target, false))
	require.NoError(t, h.Unbind(ctx, d.Device, target))
	unstage(t, h, d, "vol")
}

func TestAVolumeThatIsStagedReadOnlyIsReadOnlyAtItsTargets(t *testing.T) {
	h := newHost(t)
	d := formatted(t, h, "ext4")
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	stage(t, h, d, "vol", spec)
	unstage(t, h, d, "vol")
	spec.MountOptions = []string{"ro", "noexec"}
	stage(t, h, d, "vol", spec)
	target := filepath.Join(sharedDir(t), "target")
	for range 2 {
		require.NoError(t, h.Bind(context.Background(), d.Device, "vol", target, false))
		requireShown(t, d, target, true)
	}
	m, err := mountAt(target)
	require.NoError(t, err)
	assert.Contains(t, m.Options, "noexec")
	require.NoError(t, h.Unbind(context.Background(), d.Device, target))
	unstage(t, h, d, "vol")
}

func TestAVolumeThatIsNotStagedIsNotBound(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d, other := formatted(t, h, "ext4"), formatted(t, h, "ext4")
	target := filepath.Join(sharedDir(t), "target")
	mountpoint := filepath.Join(h.published, "vol")
	refused := func(why string) {
		t.Helper()
		require.ErrorIs(t, h.Bind(ctx, d.Device, "vol", target, false), ErrNotStaged, why)
		require.NoDirExists(t, target, "an empty directory is left")
	}
	refused("no directory")
	require.NoError(t, makeMountpoint(mountpoint))
	refused("the bare mountpoint")
	require.NoError(t, removeMountpoint(mountpoint))
	require.NoError(t, os.Symlink(t.TempDir(), mountpoint))
	refused("a link")
	require.NoError(t, os.Remove(mountpoint))
	stage(t, h, other, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	refused("another volume")
	unstage(t, h, other, "vol")
	stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	require.NoError(t, unix.Mount("none", mountpoint, "tmpfs", 0, ""))
	refused("something on top of it")
	unstage(t, h, d, "vol")
}

func TestAnOccupiedTargetIsNotChanged(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	other := formatted(t, h, "ext4")
	stage(t, h, other, "other", StageSpec{FSType: "ext4", Layout: LayoutData})
	elsewhere := t.TempDir()
	bind := func(disk *disk, staged string, readOnly bool) func(string) error {
		return func(target string) error { return h.Bind(ctx, disk.Device, staged, target, readOnly) }
	}
	unbind := func(disk *disk) func(string) error {
		return func(target string) error { return h.Unbind(ctx, disk.Device, target) }
	}
	unmount := func(target string) error { return errors.Join(unix.Unmount(target, 0), os.Remove(target)) }
	for name, c := range map[string]struct {
		put, remove func(target string) error
		unbinds     bool // Unbind of the volume may remove it
	}{
		"a file":                {func(target string) error { return os.WriteFile(target, nil, 0o600) }, os.Remove, false},
		"a link to a directory": {func(target string) error { return os.Symlink(elsewhere, target) }, os.Remove, false},
		"a link to nothing":     {func(target string) error { return os.Symlink("nowhere", target) }, os.Remove, false},
		"files":                 {func(target string) error { return os.MkdirAll(target+"/lost", 0o700) }, os.RemoveAll, false},
		"a tmpfs": {func(target string) error {
			return errors.Join(os.Mkdir(target, 0o700), unix.Mount("none", target, "tmpfs", 0, ""))
		}, unmount, false},
		"another volume":              {bind(other, "other", false), unbind(other), false},
		"the volume, to be read only": {bind(d, "vol", true), unbind(d), true},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(dir, "target")
			require.NoError(t, c.put(target))
			before, err := mountAt(target)
			require.NoError(t, err)
			err = h.Bind(ctx, d.Device, "vol", target, false)
			require.ErrorIs(t, err, ErrOccupied)
			require.ErrorContains(t, err, target)
			t.Log(err)
			if !c.unbinds {
				err = h.Unbind(ctx, d.Device, target)
				require.Error(t, err)
				t.Log(err)
			}
			after, err := mountAt(target)
			require.NoError(t, err)
			require.Equal(t, before, after)
			require.NoError(t, c.remove(target))
		})
	}
	left, err := os.ReadDir(elsewhere)
	require.NoError(t, err)
	assert.Empty(t, left)
	unstage(t, h, other, "other")
	unstage(t, h, d, "vol")
}

func TestACoveredTargetIsNotTheVolume(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	target := filepath.Join(dir, "target")
	require.NoError(t, h.Bind(ctx, d.Device, "vol", target, false))
	require.NoError(t, unix.Mount("none", target, "tmpfs", 0, ""))
	require.ErrorIs(t, h.Bind(ctx, d.Device, "vol", target, false), ErrOccupied)
	require.ErrorIs(t, h.Unbind(ctx, d.Device, target), ErrOccupied, "blockvol does not unmount what covers it")
	require.NoError(t, unix.Unmount(target, 0))
	requireShown(t, d, target, false)
	require.NoError(t, h.Unbind(ctx, d.Device, target))
	unstage(t, h, d, "vol")
}

func TestUnbindOfWhatIsNotMountedIsSuccess(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := newDisk(t, ext4Size)
	target := filepath.Join(sharedDir(t), "target")
	require.NoError(t, h.Unbind(ctx, d.Device, target))
	require.NoError(t, os.Mkdir(target, 0)) // a crash left it
	require.NoError(t, h.Unbind(ctx, d.Device, target))
	require.NoDirExists(t, target)
}

func TestABusyTargetStaysMounted(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	target := filepath.Join(dir, "target")
	require.NoError(t, h.Bind(ctx, d.Device, "vol", target, false))
	f, err := os.Create(filepath.Join(target, "open"))
	require.NoError(t, err)
	err = h.Unbind(ctx, d.Device, target)
	require.ErrorIs(t, err, ErrBusy)
	require.ErrorContains(t, err, fmt.Sprintf("process %d (", os.Getpid()))
	require.NoError(t, f.Close())
	requireShown(t, d, target, false)
	require.NoError(t, h.Unbind(ctx, d.Device, target))
	unstage(t, h, d, "vol")
}

// The next process finds what the one that died has done.
func TestABindIsFinishedAfterACrash(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	target := filepath.Join(dir, "target")
	for name, readOnly := range map[string]bool{"for reading": true, "for writing": false} {
		t.Run("after the directory was made, "+name, func(t *testing.T) {
			require.NoError(t, makeMountpoint(target))
		})
		t.Run("before the answer, "+name, func(t *testing.T) {
			require.NoError(t, h.Bind(ctx, d.Device, "vol", target, readOnly))
		})
		next, err := New(Config{Published: h.published, Buses: onLoop, Scratch: filepath.Join(t.TempDir(), "scratch")})
		require.NoError(t, err)
		require.NoError(t, next.Bind(ctx, d.Device, "vol", target, readOnly))
		requireShown(t, d, target, readOnly)
		require.NoError(t, next.Unbind(ctx, d.Device, target))
		require.NoError(t, next.Close())
	}
	unstage(t, h, d, "vol")
}

func TestACancelledBindLeavesNothing(t *testing.T) {
	h, d, _, dir := staged(t, "ext4")
	gaveUp := errors.New("the caller gave up")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(gaveUp)
	require.ErrorIs(t, h.Bind(ctx, d.Device, "vol", filepath.Join(dir, "target"), false), gaveUp)
	require.ErrorIs(t, h.Unbind(ctx, d.Device, filepath.Join(dir, "target")), gaveUp)
	require.NoDirExists(t, filepath.Join(dir, "target"))
	unstage(t, h, d, "vol")
}

func TestManyCallsForOneTargetAtOnce(t *testing.T) {
	ctx := context.Background()
	h, d, _, dir := staged(t, "ext4")
	other := formatted(t, h, "ext4")
	stage(t, h, other, "other", StageSpec{FSType: "ext4", Layout: LayoutData})
	target := filepath.Join(dir, "target")
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() { assert.NoError(t, h.Bind(ctx, d.Device, "vol", target, true)) })
	}
	calls.Wait()
	requireShown(t, d, target, true)
	var shown, refused sync.Map
	require.NoError(t, h.Unbind(ctx, d.Device, target))
	for i := range 8 { // of two volumes one is shown, and the other refused
		calls.Go(func() {
			disk, dir := d.Device, "vol"
			if i%2 == 0 {
				disk, dir = other.Device, "other"
			}
			if err := h.Bind(ctx, disk, dir, target, true); err != nil {
				assert.ErrorIs(t, err, ErrOccupied)
				refused.Store(dir, true)
				return
			}
			shown.Store(dir, true)
		})
	}
	calls.Wait()
	winner := d
	if _, ok := shown.Load("other"); ok {
		winner = other
	}
	both := map[any]bool{}
	shown.Range(func(dir, _ any) bool { both[dir] = true; return true })
	require.Len(t, both, 1)
	refused.Range(func(dir, _ any) bool { require.False(t, both[dir]); return true })
	requireShown(t, winner, target, true)
	require.NoError(t, h.Unbind(ctx, winner.Device, target))
	require.Empty(t, h.claims.all, "unused claims are deleted")
	unstage(t, h, other, "other")
	unstage(t, h, d, "vol")
}
