package mount

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	mib = int64(1) << 20

	// Sizes at which mkfs reports no problem.
	ext4Size  = 32 * mib
	xfsSize   = 320 * mib
	btrfsSize = 128 * mib
)

// onLoop is the bus of the disks in these tests.
var onLoop = []string{"loop"}

var sizes = map[string]int64{"ext4": ext4Size, "xfs": xfsSize, "btrfs": btrfsSize}

func TestMain(m *testing.M) {
	if serial := os.Getenv("MOUNT_TEST_FORMAT"); serial != "" {
		if err := formatAndDie(serial); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	if os.Getuid() == 0 {
		// Mounts made here must not appear outside, nor survive the tests.
		if os.Getenv("MOUNT_TEST_NAMESPACE") == "" {
			os.Exit(inNamespace())
		}
	}
	os.Exit(m.Run())
}

// inNamespace runs the tests again in a mount namespace of their own.
func inNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "MOUNT_TEST_NAMESPACE=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// formatAndDie runs in a process that is killed while mkfs runs.
func formatAndDie(serial string) error {
	dir := os.Getenv("MOUNT_TEST_DIR")
	published := filepath.Join(dir, "published")
	if err := os.Mkdir(published, 0o700); err != nil {
		return err
	}
	h, err := New(Config{Published: published, Buses: onLoop, Scratch: filepath.Join(dir, "staging")})
	if err != nil {
		return err
	}
	dev, err := h.Find(context.Background(), serial)
	if err != nil {
		return err
	}
	return h.Format(context.Background(), dev, FormatSpec{FSType: "ext4", Size: dev.Size})
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices and mounts need root: run the tests with sudo")
	}
}

// newHost returns a Host whose published directory is a mount of shared propagation, as in the managed plugin.
func newHost(t testing.TB) *Host {
	t.Helper()
	needRoot(t)
	h, err := New(Config{Published: sharedDir(t), Buses: onLoop, Scratch: filepath.Join(t.TempDir(), "staging")})
	require.NoError(t, err)
	t.Cleanup(func() {
		left, err := mountsUnder(h.scratch)
		require.NoError(t, err)
		for _, m := range left {
			require.Equal(t, h.scratch, m.Mountpoint, "something was left mounted in the scratch directory")
			require.NoError(t, unix.Unmount(m.Mountpoint, 0))
		}
		require.NoError(t, h.Close())
	})
	return h
}

func sharedDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	require.NoError(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	t.Cleanup(func() {
		left, err := mountsUnder(dir)
		require.NoError(t, err)
		for i := len(left) - 1; i >= 0; i-- {
			require.NoError(t, unix.Unmount(left[i].Mountpoint, unix.MNT_DETACH))
		}
		names, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, names, "directories were left in the published directory")
	})
	return dir
}

var diskCount int

// disk is a loop device on a sparse file, like those of provider local.
type disk struct {
	Device
	t     testing.TB
	image string
}

func newDisk(t testing.TB, size int64) *disk {
	t.Helper()
	needRoot(t)
	diskCount++
	image := filepath.Join(t.TempDir(), fmt.Sprintf("vol-%d-%d.img", os.Getpid(), diskCount))
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	return attach(t, image)
}

func attach(t testing.TB, image string) *disk {
	t.Helper()
	path := strings.TrimSpace(must(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { must(t, "losetup", "--detach", path) })
	d := &disk{t: t, image: image}
	d.Device = Device{Name: filepath.Base(path), Path: path, Serial: filepath.Base(image)}
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	d.Major, d.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	info, err := os.Stat(image)
	require.NoError(t, err)
	d.Size = info.Size()
	return d
}

func formatted(t testing.TB, h *Host, fstype string) *disk {
	t.Helper()
	d := newDisk(t, sizes[fstype])
	require.NoError(t, h.Format(context.Background(), d.Device, FormatSpec{FSType: fstype, Size: d.Size}))
	return d
}

func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "%s %s: %s%s", name, strings.Join(args, " "), out.String(), errs.String())
	return out.String()
}

// contents returns a hash of the whole image, to check that nothing was written to it.
func (d *disk) contents() [sha256.Size]byte {
	d.t.Helper()
	f, err := os.Open(d.image)
	require.NoError(d.t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(d.t, err)
	return [sha256.Size]byte(h.Sum(nil))
}

// requireUntouched requires that nothing was ever written to the disk: its sparse image has no blocks.
func (d *disk) requireUntouched() {
	d.t.Helper()
	var st unix.Stat_t
	require.NoError(d.t, unix.Stat(d.image, &st))
	require.Zero(d.t, st.Blocks, "something was written to the disk")
}

func (d *disk) write(b []byte, offset int64) {
	f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
	require.NoError(d.t, err)
	defer f.Close()
	_, err = f.WriteAt(b, offset)
	require.NoError(d.t, err)
	require.NoError(d.t, f.Sync())
}

// isFree waits until the disk is not busy.
func (d *disk) isFree(h *Host) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(d.t, h.WaitFree(ctx, d.Device))
}

func stage(t testing.TB, h *Host, d *disk, dir string, spec StageSpec) string {
	t.Helper()
	path, err := h.Stage(context.Background(), d.Device, dir, spec)
	require.NoError(t, err)
	return path
}

func unstage(t testing.TB, h *Host, d *disk, dir string) {
	t.Helper()
	require.NoError(t, h.Unstage(context.Background(), dir))
	d.isFree(h)
}
