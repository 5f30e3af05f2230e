package mount

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeSysfs makes a tree in which the disk is a device of another kind: its files, by their path below block/<name>, and
// where the link device/subsystem leads to. The host has volumes on every bus.
func fakeSysfs(t *testing.T, h *Host, devices map[string]map[string]string) {
	t.Helper()
	h.sysfs, h.buses = t.TempDir(), buses
	for name, files := range devices {
		for file, content := range files {
			path := filepath.Join(h.sysfs, "block", name, file)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			if file == subsystem {
				require.NoError(t, os.Symlink("../../../../"+content, path))
				continue
			}
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		}
	}
}

const subsystem = "device/subsystem"

func TestDevicesAreFoundByTheirSerialInSysfs(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	const uuid = "0b1c8a53-1ca7-4a5b-a8c5-5e1c27a4f6d2"
	const long = "volume-of-64-characters-0123456789abcdefghijklmnopqrstuvwxyz-end"
	for _, c := range []struct {
		name, file, content, serial string
		found                       bool
	}{
		{"NVMe", "device/serial", "vol0123456789abcdef0\n", "vol0123456789abcdef0", true},
		{"NVMe, padded", "device/serial", "vol012              \n", "vol012", true},
		{"NVMe, another", "device/serial", "vol0123456789abcdef1\n", "vol0123456789abcdef0", false},
		{"NVMe, a beginning", "device/serial", "vol0123456789abcdef0\n", "vol0123456789abcdef", false},
		{"NVMe, a longer one", "device/serial", "vol0123456789abcdef0\n", "vol0123456789abcdef01", false},
		{"SCSI", "device/vpd_pg80", "\x00\x80\x00\x0812345678", "12345678", true},
		{"SCSI, padded", "device/vpd_pg80", "\x00\x80\x00\x0a  123456  ", "123456", true},
		{"SCSI of DigitalOcean", "device/vpd_pg80", "\x00\x80\x00$volume-of-36-characters-0123456789ab", "volume-of-36-characters-0123456789ab", true},
		{"SCSI of DigitalOcean, the longest name", "device/vpd_pg80", "\x00\x80\x00@" + long, long, true},
		{"SCSI of DigitalOcean, cut off by QEMU", "device/vpd_pg80", "\x00\x80\x00$" + long[:36], long, false},
		{"SCSI of Hetzner", "device/vpd_pg80", "\x00\x80\x00\t100123456", "100123456", true}, // the length byte is a space
		{"SCSI of Linode", "device/vpd_pg80", "\x00\x80\x00 label-of-32-characters-012345678", "label-of-32-characters-012345678", true},
		{"SCSI of OpenStack", "device/vpd_pg80", "\x00\x80\x00$" + uuid, uuid, true},
		{"SCSI of OpenStack, cut off as virtio does", "device/vpd_pg80", "\x00\x80\x00\x14" + uuid[:20], uuid, false},
		{"SCSI of OpenStack, asked for what virtio shows", "device/vpd_pg80", "\x00\x80\x00$" + uuid, uuid[:20], false},
		{"SCSI, cut off", "device/vpd_pg80", "\x00\x80\x00\x0912345678", "12345678", false},
		{"SCSI, another page", "device/vpd_pg80", "\x00\x83\x00\x0812345678", "12345678", false},
		{"SCSI, nothing", "device/vpd_pg80", "", "12345678", false},
		{"virtio", "serial", uuid[:20], uuid, true},
		{"virtio, another", "serial", "0b1c8a53-1ca7-4a5b-b", uuid, false},
		{"virtio, short", "serial", "disk1", "disk1", true},
		{"virtio, cut shorter", "serial", uuid[:19], uuid, false},
		{"loop", "loop/backing_file", "/var/lib/blockvol/volumes/vol-1.img\n", "vol-1.img", true},
		{"loop, deleted", "loop/backing_file", "/var/lib/blockvol/volumes/vol-1.img (deleted)\n", "vol-1.img", false},
		{"loop, the whole path", "loop/backing_file", "/volumes/vol-1.img\n", "/volumes/vol-1.img", false},
		{"no identity", "ro", "0\n", "0", false},
		{"no serial", "serial", "\n", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{
				"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": fmt.Sprintf("%d\n", d.Size/512), c.file: c.content,
			}
			if on := map[string]string{"device/serial": "class/nvme", "device/vpd_pg80": "bus/scsi", "serial": "bus/virtio"}[c.file]; on != "" {
				files[subsystem] = on
			}
			fakeSysfs(t, h, map[string]map[string]string{d.Name: files, "sda": {"dev": "8:0\n", "size": "1\n"}})
			dev, err := h.Find(context.Background(), c.serial)
			if !c.found {
				require.ErrorIs(t, err, ErrNoDevice)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, Device{Name: d.Name, Path: d.Path, Major: d.Major, Minor: d.Minor, Size: d.Size, Serial: c.serial}, dev)
			require.NoError(t, h.WaitGone(context.Background(), "another"))
		})
	}
}

func TestAnIncompleteDeviceIsNotFound(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	whole := func() map[string]string {
		return map[string]string{"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": "65536\n", "serial": "disk", subsystem: "bus/virtio"}
	}
	for name, spoil := range map[string]func(files map[string]string){
		"no number":           func(f map[string]string) { delete(f, "dev") },
		"a number of nothing": func(f map[string]string) { f["dev"] = "x:y" },
		"another's number":    func(f map[string]string) { f["dev"] = "1:3" },
		"no size":             func(f map[string]string) { delete(f, "size") },
		"size zero":           func(f map[string]string) { f["size"] = "0\n" },
		"a size of nonsense":  func(f map[string]string) { f["size"] = "-5\n" },
	} {
		t.Run(name, func(t *testing.T) {
			files := whole()
			spoil(files)
			fakeSysfs(t, h, map[string]map[string]string{d.Name: files})
			_, err := h.Find(context.Background(), "disk")
			require.Error(t, err)
		})
	}
	t.Run("no node", func(t *testing.T) {
		fakeSysfs(t, h, map[string]map[string]string{d.Name: whole()})
		h.dev = t.TempDir()
		_, err := h.Find(context.Background(), "disk")
		require.ErrorIs(t, err, ErrNoDevice)
		require.ErrorContains(t, err, filepath.Join(h.dev, d.Name))
		require.NoError(t, os.WriteFile(filepath.Join(h.dev, d.Name), nil, 0o600))
		_, err = h.Find(context.Background(), "disk")
		require.ErrorIs(t, err, ErrWrongDevice, "a file is no device")
		h.dev = "/dev"
	})
	t.Run("hidden path of a multipath device", func(t *testing.T) {
		hidden := whole()
		hidden["hidden"] = "1\n"
		device := whole()
		for _, files := range []map[string]string{device, hidden} {
			delete(files, "serial")
			files["device/serial"], files[subsystem] = "disk\n", "class/nvme"
		}
		device[subsystem] = "class/nvme-subsystem"
		fakeSysfs(t, h, map[string]map[string]string{d.Name: device, "nvme0c0n1": hidden})
		dev, err := h.Find(context.Background(), "disk")
		require.NoError(t, err)
		assert.Equal(t, d.Name, dev.Name)
	})
}

func TestWaitSeesADeviceAppearAndDisappear(t *testing.T) {
	h := newHost(t)
	h.pollInterval = time.Hour // so that only the kernel's events wake it
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	d := newDisk(t, ext4Size)
	serial := "arriving-" + d.Serial
	image := filepath.Join(t.TempDir(), serial)
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, ext4Size))

	began := make(chan struct{})
	found := make(chan Device)
	go func() {
		defer close(found)
		close(began)
		dev, err := h.Wait(ctx, serial)
		assert.NoError(t, err)
		found <- dev
	}()
	<-began
	path := strings.TrimSpace(must(t, "losetup", "--find", "--show", image))
	dev := <-found
	assert.Equal(t, path, dev.Path)
	assert.Equal(t, ext4Size, dev.Size)

	gone := make(chan error)
	go func() { gone <- h.WaitGone(ctx, serial) }()
	must(t, "losetup", "--detach", path)
	require.NoError(t, <-gone)
}

func TestWaitPollsInCaseAnEventIsLost(t *testing.T) {
	h := newHost(t)
	require.NoError(t, h.uevents.close())
	h.uevents = &uevents{changed: make(chan struct{})} // gets no events
	d := newDisk(t, ext4Size)
	fakeSysfs(t, h, map[string]map[string]string{d.Name: {"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": "0\n", "serial": "disk", subsystem: "bus/virtio"}})
	h.pollInterval = time.Millisecond
	found := make(chan error)
	go func() {
		_, err := h.Wait(context.Background(), "disk")
		found <- err
	}()
	require.NoError(t, os.WriteFile(filepath.Join(h.sysfs, "block", d.Name, "size"), []byte("65536\n"), 0o600))
	require.NoError(t, <-found)
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err := h.Wait(ctx, "no-such-disk")
	require.ErrorIs(t, err, ErrNoDevice)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	err = h.WaitGone(ctx, d.Serial)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, d.Name)
}

func TestWaitReturnsTheLastErrorOfFind(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	for name, c := range map[string]struct {
		spoil func(files map[string]string)
		says  string
	}{
		"size":   {func(f map[string]string) { f["size"] = "0\n" }, "but no size yet"},
		"number": {func(f map[string]string) { f["dev"] = "1:3\n" }, "is not block device 1:3"},
		"node":   {func(map[string]string) { h.dev = t.TempDir() }, "is missing"},
		"bus":    {func(f map[string]string) { f[subsystem] = "bus/mmc" }, "(mmc) shows it on another"},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": "65536\n", "serial": "disk", subsystem: "bus/virtio"}
			h.dev = "/dev"
			c.spoil(files)
			fakeSysfs(t, h, map[string]map[string]string{d.Name: files})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			_, err := h.Wait(ctx, "disk")
			require.ErrorIs(t, err, ErrNoDevice)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestAPulledDeviceIsNeitherBusyNorFound(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	pulled := d.Device
	pulled.Name, pulled.Path, pulled.Minor = "sdzz", "/dev/sdzz", 1<<19
	busy, err := h.Busy(pulled)
	require.NoError(t, err)
	assert.False(t, busy)
	_, err = h.Probe(context.Background(), pulled)
	require.ErrorIs(t, err, ErrNoDevice)
	require.ErrorIs(t, h.Format(context.Background(), pulled, FormatSpec{FSType: "ext4", Size: 1}), ErrNoDevice)
}

func FuzzDevno(f *testing.F) {
	f.Add("7:3")
	f.Add("4294967296:1")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseDevno(s); err == nil {
			again, err := parseDevno(fmt.Sprintf("%d:%d", n.major, n.minor))
			require.NoError(t, err)
			assert.Equal(t, n, again)
		}
	})
}
