package qemu_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster/qemu"
)

const mib = 1 << 20

func vol(i int) string { return fmt.Sprintf("vol-0123456789abcd%03d", i) }

// buses has the model of one cloud for each bus.
var buses = map[string]qemu.Model{
	"NVMe": qemu.EBS,
	"SCSI": {Bus: qemu.SCSI, Vendor: "DO", Product: "Volume", Serial: func(disk string) string { return "named-" + disk }},
	"virtio": {Bus: qemu.Virtio, Serial: func(disk string) string { // a UUID
		return disk[len(disk)-3:] + "c8a53-1ca7-4a5b-a8c5-5e1c27a4f6d2"
	}},
}

// onEachBus runs a test for each bus, with -short only for the bus that the Swarm's tests then use.
func onEachBus(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	for name, model := range buses {
		if testing.Short() && name != "NVMe" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newStorage(t, model)
			w.here = w.instance("i-here")
			test(t, w)
		})
	}
}

// world is a storage with an instance.
type world struct {
	*qemu.Storage
	t     *testing.T
	model qemu.Model
	dir   string
	here  *guest
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := newStorage(t, qemu.EBS)
	w.here = w.instance("i-here")
	return w
}

func newStorage(t *testing.T, model qemu.Model) *world {
	t.Helper()
	w := &world{t: t, model: model, dir: filepath.Join(shared, fmt.Sprintf("s%d", machines.Add(1)))}
	var err error
	w.Storage, err = qemu.NewStorage(processes, w.dir, model)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, w.Close())
		assert.Empty(t, running(t, w.dir), "Close leaves no server")
	})
	return w
}

// serial returns a disk's serial.
func (w *world) serial(i int) string { return w.model.Serial(vol(i)) }

// shown returns the serial that the guest shows.
func (w *world) shown(i int) string {
	serial := w.serial(i)
	if w.model.Bus == qemu.Virtio {
		serial = serial[:20]
	}
	return serial
}

func (w *world) instance(id string) *guest {
	w.t.Helper()
	g := newGuest(w.t)
	w.Register(id, g.Machine, g.questions())
	return g
}

func (w *world) create(disk string) {
	w.t.Helper()
	require.NoError(w.t, w.CreateDisk(disk, 64*mib, ""))
}

// createFS creates a disk with a file system.
func (w *world) createFS(disk string) {
	w.t.Helper()
	w.create(disk)
	out, err := exec.Command("mkfs.ext4", "-q", w.Image(disk)).CombinedOutput()
	require.NoError(w.t, err, "%s", out)
}

func (w *world) attach(instance, disk string) {
	w.t.Helper()
	begin := time.Now()
	require.NoError(w.t, w.Attach(instance, disk))
	w.t.Logf("attach: %v", time.Since(begin).Round(time.Millisecond))
}

func (w *world) detach(instance, disk string) {
	w.t.Helper()
	begin := time.Now()
	require.NoError(w.t, w.Detach(instance, disk, false))
	w.t.Logf("detach: %v", time.Since(begin).Round(time.Millisecond))
}

func (w *world) checksum(disk string) string {
	w.t.Helper()
	content, err := os.ReadFile(w.Image(disk))
	require.NoError(w.t, err)
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// writeUntilItFails makes the guest write to a disk continuously and create the file failed at the first error.
func (w *world) writeUntilItFails(i int) {
	w.t.Helper()
	w.here.run("(d=$(device %s); while dd if=/dev/urandom of=$d bs=4k count=4096 oflag=direct conv=notrunc; do :; done; "+
		">/failed) >/dev/null 2>&1 &", w.serial(i))
}

// changes waits until a disk's image changes.
func (w *world) changes(disk string) {
	w.t.Helper()
	before := w.checksum(disk)
	require.Eventually(w.t, func() bool { return w.checksum(disk) != before }, 20*time.Second, 10*time.Millisecond)
}

// running returns the processes with a directory in their command lines.
func running(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, line := range lines {
		if content, _ := os.ReadFile(line); strings.Contains(string(content), dir+"/") {
			found = append(found, strings.ReplaceAll(string(content), "\x00", " "))
		}
	}
	return found
}

// servers returns the disk servers among them.
func servers(t *testing.T, dir string) []string {
	t.Helper()
	return slices.DeleteFunc(running(t, dir), func(command string) bool { return !strings.HasPrefix(command, "qemu-nbd") })
}

// nodes returns the number of QEMU's block nodes for disks.
func nodes(t *testing.T, m *qemu.Machine) (count int) {
	t.Helper()
	var all []struct {
		Name string `json:"node-name"`
	}
	require.NoError(t, m.Monitor().Execute(t.Context(), "query-named-block-nodes", nil, &all))
	for _, node := range all {
		if strings.HasPrefix(node.Name, "disk") {
			count++
		}
	}
	return count
}

func TestDiskIsAttachedTwentyTimes(t *testing.T) {
	t.Parallel()
	onEachBus(t, func(t *testing.T, w *world) {
		w.create(vol(0))
		require.NoError(t, os.WriteFile(w.Image(vol(0)), append([]byte("0\n"), make([]byte, mib)...), 0o600))
		for i := range 20 {
			assert.Empty(t, w.here.run("shown"))
			w.attach("i-here", vol(0))
			assert.Equal(t, w.shown(0), w.here.run("shown"))
			w.here.run("d=$(device %s) && grep -qx '%d' $d && echo %d | dd of=$d", w.serial(0), i, i+1)
			w.detach("i-here", vol(0))
			assert.Empty(t, running(t, w.dir))
			assert.Zero(t, nodes(t, w.here.Machine))
		}
	})
}

func TestDisksAreAttachedConcurrently(t *testing.T) {
	t.Parallel()
	onEachBus(t, func(t *testing.T, w *world) {
		const disks = 8
		for i := range disks {
			w.create(vol(i))
		}
		all := func(do func(i int) error) {
			t.Helper()
			begin := time.Now()
			var group errgroup.Group
			for i := range disks {
				group.Go(func() error { return do(i) })
			}
			require.NoError(t, group.Wait())
			t.Logf("%v", time.Since(begin).Round(time.Millisecond))
		}
		for range 2 {
			all(func(i int) error { return w.Attach("i-here", vol(i)) })
			for i := range disks {
				w.here.run("echo %d | dd of=$(device %s)", i, w.serial(i))
			}
			all(func(i int) error { return w.Detach("i-here", vol(i), i%2 == 0) })
			assert.Empty(t, w.here.run("shown"))
		}
		for i := range disks {
			content, err := os.ReadFile(w.Image(vol(i)))
			require.NoError(t, err)
			assert.Equal(t, fmt.Sprintln(i), string(content[:2]), "each disk has its own data")
		}
	})
}

func TestMountedDiskIsBusyAndUnharmed(t *testing.T) {
	t.Parallel()
	onEachBus(t, func(t *testing.T, w *world) {
		w.createFS(vol(0))
		w.attach("i-here", vol(0))
		w.here.run("mount -t ext4 $(device %s) /mnt && echo before >/mnt/file", w.serial(0))
		require.ErrorIs(t, w.Detach("i-here", vol(0), false), cloud.ErrDeviceBusy)
		assert.Equal(t, "before", w.here.run("echo after >/mnt/file2; sync; sysctl -qw vm.drop_caches=3; cat /mnt/file"))
		w.here.run("umount /mnt")
		w.detach("i-here", vol(0))
		assert.NotContains(t, w.here.run("dmesg"), "I/O error")
	})
}

func TestUnresponsiveGuestIsBusy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	silent := errors.New("no answer")
	fail := func(context.Context, string) (bool, error) { return false, silent }
	w.Register("i-here", w.here.Machine, qemu.Guest{Busy: fail, Present: fail})
	w.create(vol(0))
	w.attach("i-here", vol(0))
	err := w.Detach("i-here", vol(0), false)
	require.ErrorIs(t, err, cloud.ErrDeviceBusy)
	require.ErrorIs(t, err, silent)
	require.NoError(t, w.Detach("i-here", vol(0), true))
}

func TestPulledDiskFailsInItsGuestAndWorksInAnother(t *testing.T) {
	t.Parallel()
	onEachBus(t, func(t *testing.T, w *world) {
		away := w.instance("i-away")
		w.createFS(vol(0))
		w.attach("i-here", vol(0))
		w.here.run("mount -t ext4 $(device %s) /mnt && echo data | dd of=/mnt/file conv=fsync", w.serial(0))
		require.ErrorContains(t, w.Attach("i-away", vol(0)), "attached to i-here")

		begin := time.Now()
		require.NoError(t, w.Detach("i-here", vol(0), true))
		t.Logf("pulled in %v", time.Since(begin).Round(time.Millisecond))
		w.attach("i-away", vol(0))
		away.run("mount -t ext4 $(device %s) /mnt", w.serial(0))
		assert.Equal(t, "data", away.run("cat /mnt/file"))

		_, err := w.here.try("echo more | dd of=/mnt/file conv=fsync,notrunc")
		require.ErrorContains(t, err, "Input/output error")
		w.here.run("umount /mnt")
		assert.Empty(t, w.here.run("shown"))
		assert.Zero(t, nodes(t, w.here.Machine))
		assert.Equal(t, "data", away.run("sysctl -qw vm.drop_caches=3; cat /mnt/file"))
		away.run("umount /mnt")
		w.detach("i-away", vol(0))

		w.attach("i-here", vol(0)) // it can be attached again
		w.detach("i-here", vol(0))
	})
}

func TestFrozenMachineCannotWriteToAPulledDisk(t *testing.T) {
	t.Parallel()
	onEachBus(t, func(t *testing.T, w *world) {
		away := w.instance("i-away")
		w.create(vol(0))
		w.create(vol(1))
		w.attach("i-here", vol(0))
		w.writeUntilItFails(0)
		w.changes(vol(0))

		require.NoError(t, w.here.Freeze())
		require.ErrorIs(t, w.Detach("i-here", vol(0), false), cloud.ErrDeviceBusy)
		begin := time.Now()
		require.NoError(t, w.Detach("i-here", vol(0), true))
		assert.Less(t, time.Since(begin), time.Second, "a frozen guest causes no wait")
		w.attach("i-here", vol(1)) // while the kernel cannot show it, or distinguish it from the removed one
		w.attach("i-away", vol(0))
		away.run("echo new | dd of=$(device %s) conv=fsync,notrunc", w.serial(0))
		sum, blank := w.checksum(vol(0)), w.checksum(vol(1))

		require.NoError(t, w.here.Thaw())
		w.here.run("until [ -e /failed ]; do sleep 0.1; done")
		require.Eventually(t, func() bool {
			shown, _ := w.here.try("shown")
			return shown == w.shown(1) && nodes(t, w.here.Machine) == 1
		}, 20*time.Second, 100*time.Millisecond, "all changes made meanwhile are seen")
		assert.Equal(t, sum, w.checksum(vol(0)))
		assert.Equal(t, blank, w.checksum(vol(1)))
		assert.Equal(t, "new", away.run("head -n 1 $(device %s)", w.serial(0)))
		w.detach("i-here", vol(1))
		w.detach("i-away", vol(0))
	})
}

// A writer does not notice that the connection to its disk is replaced. After the disk is pulled, neither connection is left.
func TestAttachedDiskGrows(t *testing.T) {
	t.Parallel()
	for _, bus := range []string{"SCSI", "virtio"} {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			w := newStorage(t, buses[bus])
			w.here = w.instance("i-here")
			w.create(vol(0))
			w.attach("i-here", vol(0))
			w.writeUntilItFails(0)
			w.changes(vol(0))
			for _, size := range []int64{96 * mib, 128 * mib} {
				require.NoError(t, w.ResizeDisk(vol(0), size))
				require.Eventually(t, func() bool {
					return w.here.run("blockdev --getsize64 $(device %s)", w.serial(0)) == strconv.FormatInt(size, 10)
				}, 20*time.Second, 100*time.Millisecond)
				w.changes(vol(0))
				assert.Equal(t, 1, nodes(t, w.here.Machine))
				assert.Len(t, servers(t, w.dir), 1)
			}
			require.Error(t, w.ResizeDisk(vol(0), 64*mib), "never smaller")
			w.here.run("echo end | dd of=$(device %s) bs=1M seek=127 conv=fsync", w.serial(0))
			w.here.run("[ ! -e /failed ]")

			other := newStorage(t, buses[bus]) // like another process
			require.NoError(t, other.CreateDisk(vol(1), mib, ""))
			require.NoError(t, os.Remove(other.Image(vol(1))))
			require.NoError(t, os.Link(w.Image(vol(0)), other.Image(vol(1))))
			other.Register("i-here", w.here.Machine, w.here.questions())
			require.ErrorContains(t, other.Attach("i-here", vol(1)), "being served")

			require.NoError(t, w.Detach("i-here", vol(0), true))
			sum := w.checksum(vol(0))
			w.here.run("until [ -e /failed ]; do sleep 0.1; done")
			assert.Equal(t, sum, w.checksum(vol(0)))
			assert.Empty(t, servers(t, w.dir))

			away := w.instance("i-away")
			w.attach("i-away", vol(0))
			assert.Equal(t, "end", away.run("dd if=$(device %s) bs=1M skip=127 2>/dev/null | head -n 1", w.serial(0)))
			w.detach("i-away", vol(0))
		})
	}
}

// The identities of each cloud's disks in sysfs, by which blockvol finds them.
func TestIdentitiesOfDisks(t *testing.T) {
	g := newGuest(t)
	const (
		uuid  = "0b1c8a53-1ca7-4a5b-a8c5-5e1c27a4f6d2"
		name  = "volume-of-36-characters-0123456789ab"
		label = "label-of-32-characters-012345678"
		long  = "volume-of-64-characters-0123456789abcdefghijklmnopqrstuvwxyz-end"
	)
	type files map[string]string
	scsi := func(vendor, product, serial string) files {
		return files{
			"device/vpd_pg80": "\x00\x80\x00" + string(rune(min(len(serial), 36))) + serial[:min(len(serial), 36)],
			"device/vendor":   fmt.Sprintf("%-8s\n", vendor), "device/model": fmt.Sprintf("%-16s\n", product),
		}
	}
	for _, c := range []struct {
		cloud           string
		bus             qemu.Bus
		vendor, product string
		serial          string
		files           files
	}{
		{"AWS", qemu.NVMe, "", "", "vol0123456789abcdef0", files{"device/serial": "vol0123456789abcdef0\n"}},
		{"DigitalOcean", qemu.SCSI, "DO", "Volume", name, scsi("DO", "Volume", name)},
		{"DigitalOcean, the longest name", qemu.SCSI, "DO", "Volume", long, scsi("DO", "Volume", long)},
		{"Hetzner", qemu.SCSI, "HC", "Volume", "100123456", scsi("HC", "Volume", "100123456")},
		{"Linode", qemu.SCSI, "Linode", "Volume", label, scsi("Linode", "Volume", label)},
		{"OpenStack, virtio", qemu.Virtio, "", "", uuid, files{"serial": uuid[:20]}},
		{"OpenStack, SCSI", qemu.SCSI, "", "", uuid, scsi("QEMU", "QEMU HARDDISK", uuid)},
	} {
		t.Run(c.cloud, func(t *testing.T) {
			model := qemu.Model{Bus: c.bus, Vendor: c.vendor, Product: c.product, Serial: func(string) string { return c.serial }}
			w := newStorage(t, model)
			w.Register("i-here", g.Machine, g.questions())
			w.create(vol(0))
			w.attach("i-here", vol(0))
			on := map[qemu.Bus]string{qemu.NVMe: "nvme", qemu.SCSI: "scsi", qemu.Virtio: "virtio"}[c.bus]
			path := g.run("device %s %s", c.serial, on)
			for file, holds := range c.files {
				shown, err := hex.DecodeString(g.run("xxd -p /sys/block/%s/%s | tr -d '\\n'", filepath.Base(path), file))
				require.NoError(t, err)
				assert.Equal(t, holds, string(shown), file)
			}
			assert.Equal(t, "free", g.run("agent disk %s", c.serial))
			for _, other := range []string{c.serial[:len(c.serial)-1], c.serial + "0", c.serial[1:]} {
				found := g.run("device %s %s 2>/dev/null; true", other, on) != ""
				assert.Equal(t, c.bus == qemu.Virtio && other[:20] == uuid[:20], found, other)
			}
			w.detach("i-here", vol(0))
			assert.Equal(t, "absent", g.run("agent disk %s", c.serial))
		})
	}
	t.Run("a serial that QEMU would truncate", func(t *testing.T) {
		for bus, most := range map[qemu.Bus]int{qemu.NVMe: 20, qemu.SCSI: 247} {
			w := newStorage(t, qemu.Model{Bus: bus, Serial: func(string) string { return strings.Repeat("x", most+1) }})
			w.Register("i-here", g.Machine, g.questions())
			w.create(vol(0))
			require.ErrorContains(t, w.Attach("i-here", vol(0)), "is longer than")
		}
	})
}

func TestPowerLossLosesUnflushedData(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	away := w.instance("i-away")
	w.createFS(vol(0))
	w.attach("i-here", vol(0))
	w.here.run(`mount -t ext4 $(device %s) /mnt && echo flushed | dd of=/mnt/flushed conv=fsync && echo not >/mnt/not`, w.serial(0))
	w.here.PowerOff()
	sum := w.checksum(vol(0))
	assert.Empty(t, running(t, w.dir))
	w.create(vol(1))
	require.ErrorIs(t, w.Attach("i-here", vol(1)), qemu.ErrEnded, "a machine without power has no devices")
	w.detach("i-here", vol(0))

	assert.Equal(t, sum, w.checksum(vol(0)))
	w.attach("i-away", vol(0))
	assert.Equal(t, "flushed", away.run("mount -t ext4 $(device %s) /mnt && cat /mnt/*ed /mnt/not 2>/dev/null; true", w.serial(0)))
	away.run("umount /mnt")
}

func TestSnapshotOfAttachedDiskHasAllWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(vol(0))
	w.attach("i-here", vol(0))
	w.here.run("echo written | dd of=$(device %s) bs=4k conv=sync oflag=direct", w.serial(0)) // without a flush
	require.NoError(t, w.CopyDisk(vol(0), "snap-1"))
	w.here.run("echo later | dd of=$(device %s) bs=4k conv=sync oflag=direct", w.serial(0))
	require.ErrorContains(t, w.ResizeDisk(vol(0), 128*mib), "cannot resize")
	require.Error(t, w.DeleteDisk(vol(0)))
	w.detach("i-here", vol(0))

	require.NoError(t, w.CreateDisk(vol(1), 96*mib, "snap-1"))
	require.NoError(t, w.DeleteSnapshot("snap-1"))
	require.NoError(t, w.ResizeDisk(vol(0), 128*mib))
	w.attach("i-here", vol(0))
	w.attach("i-here", vol(1))
	assert.Equal(t, "later", w.here.run("head -n 1 $(device %s)", w.serial(0)))
	assert.Equal(t, "written", w.here.run("head -n 1 $(device %s)", w.serial(1)))
	for i, size := range []int{128 * mib, 96 * mib} {
		assert.Equal(t, strconv.Itoa(size), w.here.run("blockdev --getsize64 $(device %s)", w.serial(i)))
	}
	for i := range 2 {
		w.detach("i-here", vol(i))
		require.NoError(t, w.DeleteDisk(vol(i)))
	}
}

// These failures happen before the guest is involved, so the machine need not have booted.
func TestFailedAttachLeavesNothing(t *testing.T) {
	t.Parallel()
	cfg, err := golden()
	require.NoError(t, err)
	w := newStorage(t, qemu.EBS)
	cfg.Dir, cfg.Root, cfg.Ports = filepath.Join(w.dir, "m"), filepath.Join(w.dir, "root.qcow2"), 1
	out, err := exec.Command("qemu-img", "create", "-f", "qcow2", cfg.Root, "1M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	m := start(t, cfg).Machine
	require.NoError(t, m.Freeze())
	w.create(vol(0))
	w.create(vol(1))
	none := func(why string) {
		t.Helper()
		require.ErrorContains(t, w.Attach("i-here", vol(0)), why)
		assert.Zero(t, nodes(t, m))
		assert.Empty(t, servers(t, w.dir))
		entries, err := os.ReadDir(filepath.Join(w.dir, "sockets"))
		require.NoError(t, err)
		assert.Empty(t, entries)
	}
	none("Register")
	w.Register("i-here", m, qemu.Guest{})

	// Another device uses the port.
	busy := map[string]any{"driver": "virtio-balloon-pci", "bus": "port0", "id": "other"}
	require.NoError(t, m.Monitor().Execute(t.Context(), "device_add", busy, nil))
	none("device_add")
	none("device_add") // repeated: the first attempt has released everything
	m.PowerOff()
	require.ErrorIs(t, w.Attach("i-here", vol(0)), qemu.ErrEnded)

	m = start(t, cfg).Machine
	require.NoError(t, m.Freeze())
	w.Register("i-here", m, qemu.Guest{})

	// The server cannot start.
	require.NoError(t, os.Rename(w.Image(vol(0)), w.Image("away")))
	none("no such file")
	require.NoError(t, os.Mkdir(w.Image(vol(0)), 0o700))
	none("is a directory")
	require.NoError(t, os.Remove(w.Image(vol(0))))
	require.NoError(t, os.Rename(w.Image("away"), w.Image(vol(0))))

	require.NoError(t, w.Attach("i-here", vol(1)), "the port is free")
	require.ErrorContains(t, w.Attach("i-here", vol(0)), "all 1 ports")
	assert.Len(t, servers(t, w.dir), 1)

	// A second storage writes to the image, like another process.
	other, err := qemu.NewStorage(processes, w.dir, qemu.EBS)
	require.NoError(t, err)
	require.NoError(t, os.Rename(w.Image(vol(1)), w.Image("away")))
	require.NoError(t, other.CreateDisk(vol(1), mib, ""))
	require.NoError(t, os.Rename(w.Image("away"), w.Image(vol(1))))
	second := start(t, func() qemu.Config {
		cfg := cfg
		cfg.Dir, cfg.Root = filepath.Join(w.dir, "m2"), filepath.Join(w.dir, "root2.qcow2")
		out, err := exec.Command("qemu-img", "create", "-f", "qcow2", cfg.Root, "1M").CombinedOutput()
		require.NoError(t, err, "%s", out)
		return cfg
	}()).Machine
	other.Register("i-there", second, qemu.Guest{})
	require.ErrorContains(t, other.Attach("i-there", vol(1)), "being served")
	assert.Len(t, servers(t, w.dir), 1)
}

// Whenever a machine loses power, no server and no lock is left, and all disks can be attached again.
func TestPowerLossDuringAttachAndDetach(t *testing.T) {
	t.Parallel()
	cfg, err := golden()
	require.NoError(t, err)
	w := newStorage(t, qemu.EBS)
	cfg.Dir, cfg.Root = filepath.Join(w.dir, "m"), filepath.Join(w.dir, "root.qcow2")
	out, err := exec.Command("qemu-img", "create", "-f", "qcow2", cfg.Root, "1M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	const disks = 4
	for i := range disks {
		w.create(vol(i))
	}
	for round := range 10 {
		m := start(t, cfg).Machine
		w.Register("i-here", m, qemu.Guest{})
		var group errgroup.Group
		for i := range disks {
			group.Go(func() error {
				for {
					if err := w.Attach("i-here", vol(i)); err != nil {
						return err
					}
					if i == 0 { // one stays, the others go without the guest's consent
						return nil
					}
					if err := w.Detach("i-here", vol(i), true); err != nil {
						return err
					}
				}
			})
		}
		time.Sleep(time.Duration(round) * 15 * time.Millisecond)
		m.PowerOff()
		assert.Empty(t, running(t, w.dir))
		if err := group.Wait(); err != nil {
			require.ErrorIs(t, err, qemu.ErrEnded)
		}
		assert.Empty(t, running(t, w.dir))
		if err := w.Detach("i-here", vol(0), false); err != nil {
			require.ErrorContains(t, err, "not attached")
		}
	}
}
