package local

import (
	"context"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

func TestDevicesUseDirectIOAnd4096ByteSectors(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	device := attach(t, p, v)
	for file, want := range map[string]string{
		"loop/dio": "1", "loop/autoclear": "0", "queue/logical_block_size": "4096", "loop/partscan": "0",
	} {
		data, err := os.ReadFile(filepath.Join("/sys/block", device, file))
		require.NoError(t, err)
		assert.Equal(t, want, strings.TrimSpace(string(data)), file)
	}
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
}

// A container may have it mounted in its own mount namespace.
func TestDetachRefusesAMountedDevice(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	v := create(t, a, "db", smallest)
	device := "/dev/" + attach(t, a, v)
	run(t, "mkfs.ext4", "-q", device)
	mnt := t.TempDir()

	container := exec.Command("unshare", "--mount", "--propagation", "private",
		"sh", "-c", `mount "$1" "$2" && echo mounted && cat`, "sh", device, mnt)
	in, err := container.StdinPipe()
	require.NoError(t, err)
	out, err := container.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, container.Start())
	t.Cleanup(func() { _ = in.Close(); _ = container.Wait() })
	_, err = io.ReadFull(out, make([]byte, len("mounted\n")))
	require.NoError(t, err)

	for _, p := range []*Provider{a, b} {
		for _, force := range []bool{false, true} {
			err := p.Detach(t.Context(), v.ID, "a", force)
			require.ErrorIs(t, err, providers.ErrBusy)
			require.ErrorContains(t, err, device)
		}
	}
	require.ErrorIs(t, b.Delete(t.Context(), v.ID), providers.ErrHeld)
	require.True(t, found(t, b, "db").HeldBy("a"))
	require.NoError(t, providertest.Attach(t.Context(), a, v.ID))

	require.NoError(t, in.Close())
	require.NoError(t, container.Wait())
	require.NoError(t, b.Detach(t.Context(), v.ID, "a", true))
}

// While udev or blkid has the device open, the kernel delays the detach.
func TestDetachWaitsUntilTheDeviceIsClosed(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	device := attach(t, p, v)
	reader, err := os.Open("/dev/" + device)
	require.NoError(t, err)
	defer reader.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = p.Detach(ctx, v.ID, "a", false)
	require.ErrorIs(t, err, providers.ErrBusy)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.True(t, found(t, p, "db").HeldBy("a"))

	// If it is attached again meanwhile, it must stay when the reader closes it.
	require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
	reader.Close()
	kept, err := p.backing(device)
	require.NoError(t, err)
	require.Equal(t, v.Serial, kept)

	reader, err = os.Open("/dev/" + device)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Detach(t.Context(), v.ID, "a", false) }()
	for { // until the kernel has noted that the device goes at last close
		data, err := os.ReadFile(filepath.Join("/sys/block", device, "loop/autoclear"))
		require.NoError(t, err)
		if strings.TrimSpace(string(data)) == "1" {
			break
		}
	}
	reader.Close()
	require.NoError(t, <-done)
	require.False(t, found(t, p, "db").Held())
}

// The mount namespace of a managed plugin ends with the plugin.
func TestAnAttachmentOutlivesTheMountNamespace(t *testing.T) {
	dir, bound := t.TempDir(), t.TempDir()
	m := newMachine(t, dir)
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private",
		"sh", "-c", `mount --bind "$1" "$2" && exec "$3"`, "sh", dir, bound, os.Args[0])
	cmd.Env = append(os.Environ(), "CHILD=operation", "OP=attach", "AT=0", "DIR="+bound, "NODE=a", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)

	devices, err := p.loopsOf(v.ID)
	require.NoError(t, err)
	require.Len(t, devices, 1)
	path, err := os.ReadFile(filepath.Join("/sys/block", devices[0], "loop/backing_file"))
	require.NoError(t, err)
	t.Logf("in another namespace the backing file is %q", path)
	assert.Equal(t, attach(t, p, v), devices[0], "the device is used again")
	require.True(t, found(t, p, "db").HeldBy("a"))
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
}

func TestAnImageAttachedByHandIsHeld(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	device := strings.TrimSpace(run(t, "losetup", "--find", "--show", p.disks.path(v.ID, ready)))
	for name, call := range map[string]func() error{
		"attach": func() error { return providertest.Attach(t.Context(), p, v.ID) },
		"delete": func() error { return p.Delete(t.Context(), v.ID) },
		"forget": func() error { return p.Forget(t.Context(), v.ID) },
	} {
		err := call()
		require.ErrorIs(t, err, providers.ErrHeld, name)
		require.ErrorContains(t, err, device)
	}
	run(t, "losetup", "--detach", device)
	require.NoError(t, p.Delete(t.Context(), v.ID))
}

// An image of a copy of the directory is attached: two devices would have the same identity.
func TestAttachRefusesADeviceOfAnotherFileOfTheSameName(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	other := filepath.Join(t.TempDir(), v.Serial)
	require.NoError(t, os.WriteFile(other, make([]byte, smallest), 0o600))
	device := strings.TrimSpace(run(t, "losetup", "--find", "--show", other))
	err := providertest.Attach(t.Context(), p, v.ID)
	require.ErrorIs(t, err, providers.ErrBusy)
	require.ErrorContains(t, err, device)
	run(t, "losetup", "--detach", device)
	require.False(t, found(t, p, "db").Held())
}

func TestAttachExplainsAMissingDeviceNode(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	p.dev = t.TempDir()
	err := providertest.Attach(t.Context(), p, v.ID)
	require.ErrorContains(t, err, "bind the host's /dev")
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.False(t, found(t, p, "db").Held(), "a failed attach leaves no holder")

	require.NoError(t, unix.Mknod(filepath.Join(p.dev, "loop-control"), unix.S_IFCHR|0o600, int(unix.Mkdev(10, 237))))
	require.ErrorContains(t, providertest.Attach(t.Context(), p, v.ID), "bind the host's /dev")
}

// Somebody used losetup -d.
func TestTheNextAttachRestoresALostDevice(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	run(t, "losetup", "--detach", "/dev/"+attach(t, p, v))
	require.Equal(t, providers.Attachment{Node: "a", State: providers.Attached}, found(t, p, "db").Attachment)
	attach(t, p, v)
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
}

func TestDetachKeepsADeviceThatNowBelongsToAnotherVolume(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a := m.provider(t, "a", "main")
	v, w := create(t, a, "db", smallest), create(t, a, "other", smallest)
	device := attach(t, a, v)
	a.disks.before = func(op, path string) error {
		if op == "clear" && path == device {
			a.disks.before = nil
			run(t, "losetup", "-d", "/dev/"+device) // as errors here tell operators to; or an earlier, lazy clear takes effect
			b := m.provider(t, "b", "main")
			require.NoError(t, providertest.Attach(t.Context(), b, w.ID))
			got, err := b.loopsOf(w.ID)
			require.NoError(t, err)
			require.Equal(t, []string{device}, got)
		}
		return nil
	}
	require.NoError(t, a.Detach(t.Context(), v.ID, "a", false))
	got, err := a.loopsOf(w.ID)
	require.NoError(t, err)
	assert.Equal(t, []string{device}, got, "the other volume, attached to b, has lost its device")
	a.disks.before = nil
	_ = m.provider(t, "b", "main").Detach(t.Context(), w.ID, "b", false)
}

// The operator has attached a copy of the image.
func TestDetachKeepsTheDeviceOfACopy(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a := m.provider(t, "a", "main")
	v := create(t, a, "db", smallest)
	attach(t, a, v)
	backup := filepath.Join(t.TempDir(), v.ID+".img")
	run(t, "cp", "--sparse=always", a.disks.path(v.ID, ready), backup)
	copyDev := strings.TrimSpace(run(t, "losetup", "--find", "--show", backup))
	_ = a.Detach(t.Context(), v.ID, "a", false) // busy, while the copy has the image's name
	out := run(t, "losetup", "-j", backup)
	if assert.NotEmpty(t, out, "the operator's device of a backup was cleared") {
		run(t, "losetup", "-d", copyDev)
		_ = a.Detach(t.Context(), v.ID, "a", false)
	}
}
