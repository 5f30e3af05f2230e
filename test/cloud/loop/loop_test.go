package loop_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/loop"
	"github.com/blockvol/blockvol/test/namespace"
)

const (
	mib    = 1 << 20
	disk   = "vol-0123456789abcdef0"
	serial = "vol0123456789abcdef0"
)

// world is a backend with two instances.
type world struct {
	*loop.Backend
	t          *testing.T
	dir        string
	here, away *mount.Host
	hereTree   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: namespace.Dir(t)}
	var err error
	w.Backend, err = loop.New(filepath.Join(w.dir, "cloud"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	w.hereTree = filepath.Join(w.dir, "here")
	w.here, w.away = w.instance("i-here", w.hereTree), w.instance("i-away", filepath.Join(w.dir, "away"))
	return w
}

func (w *world) instance(id, tree string) *mount.Host {
	w.t.Helper()
	require.NoError(w.t, w.Sysfs(id, tree))
	host, err := mount.New(mount.Config{Published: w.t.TempDir(), Buses: []string{"nvme"}, Scratch: w.t.TempDir(), Sysfs: tree})
	require.NoError(w.t, err)
	w.t.Cleanup(func() { require.NoError(w.t, host.Close()) })
	return host
}

func (w *world) create(disk string, snapshot string) {
	w.t.Helper()
	require.NoError(w.t, w.CreateDisk(disk, 64*mib, snapshot))
}

// loops returns the loop devices of the backend's images.
func (w *world) loops() []string {
	w.t.Helper()
	loops, err := namespace.Loops(w.dir)
	require.NoError(w.t, err)
	return loops
}

// atEvent makes a change, and waits for an event of the kernel about a device at which the change is shown: what mount.Host waits for,
// without its looks in between.
func atEvent(t *testing.T, change func() error, shown func(device string) bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	require.NoError(t, err)
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	require.NoError(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}))
	require.NoError(t, events.SetReadDeadline(time.Now().Add(20*time.Second)))
	var group errgroup.Group
	group.Go(change)
	for buf := make([]byte, 16<<10); ; {
		n, err := events.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			continue // of other devices
		}
		if err != nil {
			require.NoError(t, group.Wait())
			require.NoError(t, err, "no event came at which the change was shown")
		}
		_, device, _ := strings.Cut(string(buf[:n]), "\x00DEVNAME=")
		device, _, _ = strings.Cut(device, "\x00")
		if device != "" && shown("/dev/"+device) {
			break
		}
	}
	require.NoError(t, group.Wait())
}

// isGone tells whether the instance does not see the disk, at an event of its device.
func (w *world) isGone(device string) func(string) bool {
	return func(event string) bool {
		_, err := w.here.Find(w.t.Context(), serial)
		return event == device && errors.Is(err, mount.ErrNoDevice)
	}
}

func TestAttachAndDetachSendEvents(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	for range 5 {
		var dev mount.Device
		atEvent(t, func() error { return w.Attach("i-here", disk) }, func(device string) bool {
			var err error
			dev, err = w.here.Find(t.Context(), serial)
			return err == nil && dev.Path == device
		})
		assert.Equal(t, w.Device(disk), dev.Path)
		assert.EqualValues(t, 64*mib, dev.Size)

		_, err := w.away.Find(t.Context(), serial)
		require.ErrorIs(t, err, mount.ErrNoDevice, "no other instance sees it")

		atEvent(t, func() error { return w.Detach("i-here", disk, false) }, w.isGone(dev.Path))
	}
	assert.Empty(t, w.loops())
}

func TestDeviceHasSectorSizeAndSerialOfACloudDisk(t *testing.T) {
	w := newWorld(t)
	w.create("vol-0abc", "")
	require.NoError(t, w.Attach("i-here", "vol-0abc"))
	name := filepath.Base(w.Device("vol-0abc"))
	content, err := os.ReadFile(filepath.Join(w.hereTree, "block", name, "device", "serial"))
	require.NoError(t, err)
	assert.Equal(t, "vol0abc             \n", string(content))
	_, err = w.here.Find(t.Context(), "vol0abc")
	require.NoError(t, err)
	for file, value := range map[string]string{"queue/logical_block_size": "4096", "loop/dio": "1", "loop/autoclear": "0"} {
		content, err := os.ReadFile(filepath.Join("/sys/block", name, file))
		require.NoError(t, err)
		assert.Equal(t, value, strings.TrimSpace(string(content)), file)
	}
}

func TestDeviceInUseIsDetachedByForceOnly(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	require.NoError(t, w.Attach("i-here", disk))
	device := w.Device(disk)
	program(t, "mkfs.ext4", "-q", device)
	dir := t.TempDir()
	program(t, "mount", device, dir)
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			program(t, "umount", dir)
		}
	}
	defer unmount()

	require.ErrorIs(t, w.Detach("i-here", disk, false), cloud.ErrDeviceBusy)
	found, err := w.here.Find(t.Context(), serial)
	require.NoError(t, err, "nothing has changed")
	assert.Equal(t, device, found.Path)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("still"), 0o600))
	unmount()

	exclusive, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	require.NoError(t, err)
	require.ErrorIs(t, w.Detach("i-here", disk, false), cloud.ErrDeviceBusy)

	atEvent(t, func() error { return w.Detach("i-here", disk, true) }, w.isGone(device)) // even while it is open
	assert.Empty(t, w.Device(disk))
	assert.Equal(t, []string{device}, w.loops(), "the kernel keeps the device")
	require.NoError(t, exclusive.Close())
	require.Eventually(t, func() bool { return len(w.loops()) == 0 }, 5*time.Second, time.Millisecond)
}

func TestPulledDeviceFailsAllWrites(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	require.NoError(t, w.Attach("i-here", disk))
	program(t, "mkfs.ext4", "-q", w.Device(disk))
	here, away := t.TempDir(), t.TempDir()
	program(t, "mount", w.Device(disk), here)
	defer program(t, "umount", here)
	program(t, "sh", "-ec", "echo before >$0/file; sync -f $0", here)

	require.NoError(t, w.Detach("i-here", disk, true))
	require.Error(t, exec.Command("sh", "-ec", "echo after >$0/file; sync -f $0", here).Run())
	require.NoError(t, w.Attach("i-away", disk))
	program(t, "mount", w.Device(disk), away)
	defer program(t, "umount", away)
	content, err := os.ReadFile(filepath.Join(away, "file"))
	require.NoError(t, err)
	assert.Equal(t, "before\n", string(content))
}

func TestDiskKeepsItsDataAcrossInstances(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	for i, instance := range []string{"i-here", "i-away", "i-here"} {
		require.NoError(t, w.Attach(instance, disk))
		require.Error(t, w.Attach("i-away", disk), "it is attached")
		f, err := os.OpenFile(w.Device(disk), os.O_RDWR, 0)
		require.NoError(t, err)
		last := make([]byte, 4096)
		_, err = f.ReadAt(last, 64*mib-4096)
		require.NoError(t, err)
		assert.Equal(t, bytes.Repeat([]byte{byte(i)}, 4096), last)
		_, err = f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), 64*mib-4096)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, w.Detach(instance, disk, false))
		require.Error(t, w.Detach(instance, disk, false), "it is detached")
	}
}

func TestDiskGrowsWhileAttached(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	require.NoError(t, w.Attach("i-here", disk))
	require.NoError(t, w.ResizeDisk(disk, 96*mib))
	dev, err := w.here.Find(t.Context(), serial)
	require.NoError(t, err)
	assert.EqualValues(t, 96*mib, dev.Size)
	require.Error(t, w.ResizeDisk(disk, 64*mib), "never smaller")
	require.NoError(t, w.Detach("i-here", disk, false))
	require.NoError(t, w.ResizeDisk(disk, 128*mib))
	require.NoError(t, w.Attach("i-here", disk))
	dev, err = w.here.Find(t.Context(), serial)
	require.NoError(t, err)
	assert.EqualValues(t, 128*mib, dev.Size)
}

func TestSnapshotHasTheSameHoles(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	image, err := os.OpenFile(w.Image(disk), os.O_RDWR, 0)
	require.NoError(t, err)
	for _, at := range []int64{0, 10 * mib, 64*mib - 5} {
		_, err := image.WriteAt([]byte("hello"), at)
		require.NoError(t, err)
	}
	require.NoError(t, image.Sync())

	require.NoError(t, w.CopyDisk(disk, "snap-0abc"))
	require.Error(t, w.CopyDisk(disk, "snap-0abc"), "it exists")
	_, err = image.WriteAt([]byte("later"), 0)
	require.NoError(t, err)
	require.NoError(t, image.Close())
	require.NoError(t, w.CreateDisk("vol-0def", 128*mib, "snap-0abc"))
	require.Error(t, w.CreateDisk("vol-1def", 32*mib, "snap-0abc"), "a disk cannot be smaller than its snapshot")
	require.Error(t, w.CreateDisk("vol-1def", 128*mib, "snap-none"))
	require.NoError(t, w.CreateDisk("vol-1def", 32*mib, ""), "a failed copy leaves no file")
	require.NoError(t, w.DeleteSnapshot("snap-0abc"))
	require.Error(t, w.DeleteSnapshot("snap-0abc"))

	copied, err := os.ReadFile(w.Image("vol-0def"))
	require.NoError(t, err)
	require.Len(t, copied, 128*mib)
	for _, at := range []int{0, 10 * mib, 64*mib - 5} {
		assert.Equal(t, "hello", string(copied[at:at+5]))
		clear(copied[at : at+5])
	}
	assert.Equal(t, -1, bytes.IndexFunc(copied, func(r rune) bool { return r != 0 }))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(w.Image("vol-0def"), &st))
	assert.Less(t, st.Blocks*512, int64(mib), "bytes on disk")
}

func TestAttachedDiskIsNotDeleted(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	require.Error(t, w.Attach("i-unknown", disk))
	require.Error(t, w.Attach("i-here", "vol-none"))
	require.NoError(t, w.Attach("i-here", disk))
	require.Error(t, w.DeleteDisk(disk))
	require.Error(t, w.CreateDisk(disk, mib, ""))
	require.NoError(t, w.Detach("i-here", disk, false))
	require.NoError(t, w.DeleteDisk(disk))
	require.Error(t, w.DeleteDisk(disk))
	w.create(disk, "")
}

// Meanwhile others set up and clear loop devices, as engines and other tests do.
func TestHundredDisksAreAttachedAtOnceAmongOthers(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var others errgroup.Group
	other := filepath.Join(w.dir, "other")
	require.NoError(t, os.WriteFile(other, make([]byte, mib), 0o600))
	for range 2 {
		others.Go(func() error {
			for ctx.Err() == nil {
				if out, err := exec.Command("losetup", "--find", "--show", other).Output(); err == nil {
					if err := exec.Command("losetup", "--detach", strings.TrimSpace(string(out))).Run(); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	defer func() { cancel(); require.NoError(t, others.Wait()) }()

	const n = 100
	name := func(i int) string { return fmt.Sprintf("vol-%017x", i) }
	for i := range n {
		require.NoError(t, w.CreateDisk(name(i), int64(i+1)*mib, ""))
	}
	begin := time.Now()
	var group errgroup.Group
	for i := range n {
		group.Go(func() error {
			if err := w.Attach("i-here", name(i)); err != nil {
				return err
			}
			dev, err := w.here.Find(t.Context(), strings.Replace(name(i), "-", "", 1))
			if err == nil && dev.Size != int64(i+1)*mib {
				err = fmt.Errorf("%s shows another disk: %d bytes and not those of %s", dev.Name, dev.Size, name(i))
			}
			return err
		})
	}
	require.NoError(t, group.Wait())
	t.Logf("%d attached in %v", n, time.Since(begin))
	entries, err := os.ReadDir(filepath.Join(w.hereTree, "block"))
	require.NoError(t, err)
	assert.Len(t, entries, n)
	begin = time.Now()
	for i := range n {
		group.Go(func() error { return w.Detach("i-here", name(i), false) })
	}
	require.NoError(t, group.Wait())
	t.Logf("detached in %v", time.Since(begin))
}

func TestCloseLeavesNothing(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		name := "vol-" + strconv.Itoa(i)
		w.create(name, "")
		require.NoError(t, w.Attach("i-here", name))
		require.NoError(t, w.CopyDisk(name, "snap-"+strconv.Itoa(i)))
	}
	require.Len(t, w.loops(), 5)
	require.NoError(t, w.Close())
	assert.Empty(t, w.loops())
	left, err := filepath.Glob(filepath.Join(w.dir, "*", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	for _, file := range backing {
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) { // another test's device, detached meanwhile
			continue
		}
		require.NoError(t, err)
		assert.NotContains(t, string(content), w.dir)
	}
}

// A test can end early, and its engine before the cloud.
func TestDeviceIsRemovedAfterItsInstance(t *testing.T) {
	w := newWorld(t)
	w.create(disk, "")
	require.NoError(t, w.Attach("i-here", disk))
	require.NoError(t, os.RemoveAll(w.hereTree))
	require.NoError(t, w.Close())
	assert.Empty(t, w.loops())
}

func program(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...).CombinedOutput()
	require.NoError(t, err, string(out))
}
