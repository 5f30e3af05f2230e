package mount

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// freezable returns a disk with a file system that is thawed when the test ends, whatever the test found out: processes that wait
// for a frozen one cannot be killed.
func freezable(t *testing.T, h *Host, fstype string) *disk {
	t.Helper()
	d := formatted(t, h, fstype)
	t.Cleanup(func() {
		dir := t.TempDir()
		out, err := exec.Command("sh", "-c", `mount "$1" "$2" || mount -o ro "$1" "$2" && { fsfreeze --unfreeze "$2"; umount "$2"; }`, "sh", d.Path, dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	return d
}

// freezeForEver freezes a file system as a process leaves it that is killed.
func freezeForEver(t *testing.T, path string) {
	t.Helper()
	require.NoError(t, request(t, path, fiFreeze))
}

func request(t *testing.T, path string, req uintptr) error {
	t.Helper()
	root, err := os.Open(path)
	require.NoError(t, err)
	defer root.Close()
	return ioctl(root, req, new(int32))
}

// requireFrozen asks the kernel in the only way there is: it freezes no file system twice.
func requireFrozen(t *testing.T, path string, frozen bool) {
	t.Helper()
	err := request(t, path, fiFreeze)
	if err == nil {
		require.NoError(t, request(t, path, fiThaw))
		require.False(t, frozen, "the file system at %s is not frozen", path)
		return
	}
	require.ErrorIs(t, err, unix.EBUSY)
	require.True(t, frozen, "the file system at %s is frozen", path)
}

// freezes freezes the file system at vol. The kernel of a busy machine may need more time than the freeze may last.
func freezes(t *testing.T, h *Host, d *disk, limit time.Duration) (thaw func() error) {
	t.Helper()
	for {
		thaw, err := h.Freeze(t.Context(), d.Device, "vol", limit)
		if err == nil {
			return thaw
		}
		require.ErrorIs(t, err, ErrFreezing)
	}
}

// writes writes a file, and returns what says when that is done.
func writes(path string) (done chan error) {
	done = make(chan error, 1)
	go func() { done <- os.WriteFile(path, []byte("written"), 0o600) }()
	return done
}

// churn makes and removes files in a directory until the test ends.
func churn(t *testing.T, dir string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		var err error
		for n := 0; ctx.Err() == nil && err == nil; n++ {
			name := filepath.Join(dir, fmt.Sprint("churn", n%500))
			if err = os.WriteFile(name, make([]byte, 5000), 0o600); err == nil && n%7 == 0 {
				err = os.Remove(name)
			}
		}
		done <- err
	}()
	return func() { cancel(); require.NoError(t, <-done) }
}

func TestACopyOfAFrozenFileSystemNeedsNoRepair(t *testing.T) {
	for _, fstype := range FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := freezable(t, h, fstype)
			path := stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
			target := filepath.Join(sharedDir(t), "target")
			require.NoError(t, h.Bind(t.Context(), d.Device, "vol", target, false))
			stop := churn(t, target)

			image := filepath.Join(t.TempDir(), "copy-"+filepath.Base(d.image))
			for held := false; !held; {
				require.NoError(t, os.WriteFile(filepath.Join(path, "marker"), []byte("written before"), 0o600))
				thaw := freezes(t, h, d, MaxFreeze)
				requireFrozen(t, path, true)
				requireFrozen(t, target, true)
				must(t, "cp", "--sparse=always", d.image, image)
				err := thaw()
				if held = err == nil; !held {
					require.ErrorIs(t, err, ErrThawed) // the machine is busy
				}
				requireFrozen(t, path, false)
			}
			stop()
			require.NoError(t, h.Unbind(t.Context(), d.Device, target))
			unstage(t, h, d, "vol") // of two btrfs with one UUID the kernel mounts one

			restored := attach(t, image)
			check := func() { must(t, fsck[fstype][0], append(fsck[fstype][1:], restored.Path)...) }
			if fstype != "xfs" { // which leaves its log to be replayed, for files that are open and have no name
				check()
			}
			path = stage(t, h, restored, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
			b, err := os.ReadFile(filepath.Join(path, "marker"))
			require.NoError(t, err)
			assert.Equal(t, "written before", string(b))
			unstage(t, h, restored, "vol")
			check()
		})
	}
}

func TestAFreezeThatNobodyEndsEndsByItself(t *testing.T) {
	h := newHost(t)
	d := freezable(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	ctx, cancel := context.WithCancel(t.Context())
	thaw, err := h.Freeze(ctx, d.Device, "vol", time.Hour)
	require.NoError(t, err)
	cancel()
	written := writes(filepath.Join(path, "file"))
	requireFrozen(t, path, true)
	select {
	case err := <-written:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	freezeForEver(t, path)
	for range 2 {
		err := thaw()
		require.ErrorIs(t, err, ErrThawed)
		require.ErrorIs(t, err, errFreezeLimit)
	}
	requireFrozen(t, path, true) // by another, whose freeze is not ended
	_, err = h.Freeze(t.Context(), d.Device, "vol", MaxFreeze)
	require.ErrorIs(t, err, ErrBusy)
	requireFrozen(t, path, true)
	thawed, err := h.Thaw(t.Context(), d.Device, "vol")
	require.NoError(t, err)
	require.True(t, thawed)
	unstage(t, h, d, "vol")
}

func TestCloseThaws(t *testing.T) {
	h := newHost(t)
	d := freezable(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	again, err := New(Config{Published: h.published, Buses: onLoop, Scratch: t.TempDir()})
	require.NoError(t, err)
	thaw := freezes(t, again, d, MaxFreeze)
	require.NoError(t, again.Close())
	requireFrozen(t, path, false)
	err = thaw()
	require.ErrorIs(t, err, ErrThawed)
	require.ErrorIs(t, err, errClosed)
	_, err = again.Freeze(t.Context(), d.Device, "vol", MaxFreeze)
	require.ErrorIs(t, err, ErrFreezing)
	requireFrozen(t, path, false)
	unstage(t, h, d, "vol")
}

func TestAFreezeThatAnotherProgramEndsHasNotLasted(t *testing.T) {
	h := newHost(t)
	d := freezable(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	thaw := freezes(t, h, d, MaxFreeze)
	require.NoError(t, request(t, path, fiThaw))
	require.ErrorIs(t, thaw(), ErrThawed)
	unstage(t, h, d, "vol")
}

func TestOtherCallsWaitForTheThaw(t *testing.T) {
	h := newHost(t)
	d := freezable(t, h, "ext4")
	spec := StageSpec{FSType: "ext4", Layout: LayoutData}
	path := stage(t, h, d, "vol", spec)
	d.resize(2 * d.Size)
	calls := map[string]func(context.Context) error{
		"Unstage": func(ctx context.Context) error { return h.Unstage(ctx, "vol") },
		"Grow":    func(ctx context.Context) error { _, err := h.Grow(ctx, d.Device, "vol"); return err },
		"Stage":   func(ctx context.Context) error { _, err := h.Stage(ctx, d.Device, "vol", spec); return err },
		"Freeze":  func(ctx context.Context) error { _, err := h.Freeze(ctx, d.Device, "vol", MaxFreeze); return err },
		"Thaw":    func(ctx context.Context) error { _, err := h.Thaw(ctx, d.Device, "vol"); return err },
	}
	for held := false; !held; {
		thaw := freezes(t, h, d, MaxFreeze)
		for name, call := range calls {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			err := call(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, name)
			require.ErrorContains(t, err, "another call still works on", name)
		}
		held = thaw() == nil
	}
	requireFrozen(t, path, false)
	thaw := freezes(t, h, d, MaxFreeze)
	unstaged := make(chan error)
	go func() { unstaged <- h.Unstage(t.Context(), "vol") }()
	_ = thaw()
	require.NoError(t, <-unstaged)
	d.isFree(h)
	must(t, "e2fsck", "-f", "-n", d.Path)
}

// The kernel cannot write out a file system, nor freeze it, while the one is frozen that has its disk's image.
func TestAFileSystemThatFreezesTooLateIsThawedAtOnce(t *testing.T) {
	for _, c := range []struct {
		fstype string
		dirty  bool
	}{{"ext4", true}, {"ext4", false}, {"xfs", false}, {"btrfs", true}} {
		t.Run(fmt.Sprintf("%s, dirty %t", c.fstype, c.dirty), func(t *testing.T) {
			h := newHost(t)
			below := t.TempDir()
			must(t, "mount", freezable(t, h, "xfs").Path, below)
			t.Cleanup(func() { must(t, "umount", below) })
			image := filepath.Join(below, fmt.Sprintf("vol-%d-above.img", os.Getpid()))
			require.NoError(t, os.WriteFile(image, nil, 0o600))
			require.NoError(t, os.Truncate(image, min(sizes[c.fstype], 300*mib)))
			d := attach(t, image)
			require.NoError(t, h.Format(t.Context(), d.Device, FormatSpec{FSType: c.fstype, Size: d.Size}))
			path := stage(t, h, d, "vol", StageSpec{FSType: c.fstype, Layout: LayoutData})
			require.NoError(t, os.WriteFile(filepath.Join(path, "file"), make([]byte, mib), 0o600))
			if !c.dirty {
				unix.Sync()
			}
			freezeForEver(t, below)
			thawBelow := func() { _ = request(t, below, fiThaw) }
			defer thawBelow()

			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := h.Freeze(ctx, d.Device, "vol", MaxFreeze)
			require.ErrorIs(t, err, ErrFreezing)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			thawBelow()
			thawed, err := h.Thaw(t.Context(), d.Device, "vol") // waits for the kernel to be done
			require.NoError(t, err)
			require.False(t, thawed, "it was thawed before")
			unstage(t, h, d, "vol")
		})
	}
}

func TestOnlyAStagedFileSystemIsFrozen(t *testing.T) {
	h := newHost(t)
	d, other := freezable(t, h, "ext4"), freezable(t, h, "ext4")
	path := stage(t, h, other, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	for _, dir := range []string{"vol", "none"} {
		_, err := h.Freeze(t.Context(), d.Device, dir, MaxFreeze)
		require.ErrorIs(t, err, ErrNotStaged)
	}
	stale := other.Device
	stale.Serial = d.Serial
	_, err := h.Freeze(t.Context(), stale, "vol", MaxFreeze)
	require.ErrorIs(t, err, ErrWrongDevice)
	requireFrozen(t, path, false)

	freezeForEver(t, path)
	before := d.contents()
	for _, dir := range []string{"vol", "none"} {
		thawed, err := h.Thaw(t.Context(), d.Device, dir)
		require.NoError(t, err)
		require.False(t, thawed)
	}
	requireFrozen(t, path, true)
	assert.Equal(t, before, d.contents(), "a disk that the kernel has no file system of is not mounted")
	require.NoError(t, request(t, path, fiThaw))
	unstage(t, h, other, "vol")
}

func TestAFileSystemThatWasLeftFrozenIsThawedWhereverItIs(t *testing.T) {
	inKernel := func(t *testing.T, h *Host, _ string) { require.NoError(t, h.Unstage(t.Context(), "vol")) }
	for _, fstype := range FSTypes() {
		for name, leave := range map[string]func(t *testing.T, h *Host, path string){
			"staged": func(*testing.T, *Host, string) {},
			"in a container alone": func(t *testing.T, _ *Host, path string) {
				t.Cleanup(inContainer(t, path))
				require.NoError(t, unix.Unmount(path, unix.MNT_DETACH)) // as an engine does that starts after a crash
			},
			"in the kernel alone": inKernel, "in the kernel alone, read-only": inKernel,
		} {
			t.Run(fstype+" "+name, func(t *testing.T) {
				h := newHost(t)
				d := freezable(t, h, fstype)
				spec := StageSpec{FSType: fstype, Layout: LayoutRoot}
				if strings.HasSuffix(name, "read-only") {
					spec.MountOptions = []string{"ro"}
				}
				path := stage(t, h, d, "vol", spec)
				freezeForEver(t, path)
				leave(t, h, path)
				busy, err := h.Busy(d.Device)
				require.NoError(t, err)
				require.True(t, busy)
				for _, frozen := range []bool{true, false} {
					thawed, err := h.Thaw(t.Context(), d.Device, "vol")
					require.NoError(t, err)
					assert.Equal(t, frozen, thawed)
				}
				require.NoError(t, h.Unstage(t.Context(), "vol"))
				if name != "in a container alone" {
					d.isFree(h)
				}
			})
		}
	}
}
