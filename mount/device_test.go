package mount

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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

func TestDevicesAreFoundByWhatSysfsSaysOfThem(t *testing.T) {
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
		{"SCSI of Hetzner", "device/vpd_pg80", "\x00\x80\x00\t100123456", "100123456", true}, // the length is a blank
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

func TestADeviceThatIsNotWholeYetIsNotFound(t *testing.T) {
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

// A cloud's disks are on its own buses. What an operator plugs in or sets up elsewhere may show any serial.
func TestADeviceOnAnotherBusIsNotTheVolume(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	const serial = "vol0123456789abcdef0"
	ctx := context.Background()
	files := map[string]map[string]string{
		"loop":   {"loop/backing_file": "/home/" + serial + "\n"},
		"nvme":   {"device/serial": serial + "\n", subsystem: "class/nvme"},
		"mmc":    {"device/serial": serial + "\n", subsystem: "bus/mmc"},
		"scsi":   {"device/vpd_pg80": "\x00\x80\x00\x14" + serial, subsystem: "bus/scsi"},
		"virtio": {"serial": serial, subsystem: "bus/virtio"},
		"":       {"device/serial": serial + "\n"},
	}
	for on, shown := range files {
		shown["dev"], shown["size"] = fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "65536\n"
		for asked := range buses {
			t.Run(asked+" asked, on "+on, func(t *testing.T) {
				fakeSysfs(t, h, map[string]map[string]string{d.Name: shown})
				known, err := h.Find(ctx, serial)
				if on == "mmc" || on == "" {
					known = Device{Name: d.Name, Path: d.Path, Major: d.Major, Minor: d.Minor, Serial: serial}
				} else {
					require.NoError(t, err)
				}
				h.buses = map[string]bus{asked: buses[asked]}
				dev, err := h.Find(ctx, serial)
				if on == asked {
					require.NoError(t, err)
					assert.Equal(t, d.Path, dev.Path)
					return
				}
				require.ErrorIs(t, err, ErrNoDevice)
				require.ErrorContains(t, err, fmt.Sprintf("on a bus where volumes appear (%s), though %s (%s) shows it on another", asked, d.Name, cmp.Or(on, "unknown")))
				require.NoError(t, h.WaitGone(ctx, serial), "it is none of ours to wait for")
				_, err = h.Probe(ctx, known)
				require.ErrorIs(t, err, ErrWrongDevice)
			})
		}
	}
	t.Run("beside the volume", func(t *testing.T) {
		fakeSysfs(t, h, map[string]map[string]string{d.Name: files["nvme"], "loop999": files["loop"]})
		h.buses = map[string]bus{"nvme": buses["nvme"]}
		dev, err := h.Find(ctx, serial)
		require.NoError(t, err)
		assert.Equal(t, d.Path, dev.Path)
	})
}

func TestADeviceThatShowsNoSerialAnyMoreIsNotTouched(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	for name, on := range map[string]string{"loop": "", "nvme": "class/nvme", "scsi": "bus/scsi", "virtio": "bus/virtio"} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": "65536\n", "loop/offset": "0\n"}
			if on != "" {
				delete(files, "loop/offset")
				files[subsystem] = on
			}
			fakeSysfs(t, h, map[string]map[string]string{d.Name: files})
			_, err := h.Probe(context.Background(), d.Device)
			require.ErrorIs(t, err, ErrWrongDevice)
			require.ErrorContains(t, err, "does not have the serial")
		})
	}
}

func TestADeviceIsSeenAsItArrivesAndGoes(t *testing.T) {
	h := newHost(t)
	h.lookEvery = time.Hour // so only the kernel's events wake it
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

func TestALostEventIsMadeUpForByLooking(t *testing.T) {
	h := newHost(t)
	require.NoError(t, h.uevents.close())
	h.uevents = &uevents{changed: make(chan struct{})} // deaf
	d := newDisk(t, ext4Size)
	fakeSysfs(t, h, map[string]map[string]string{d.Name: {"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": "0\n", "serial": "disk", subsystem: "bus/virtio"}})
	h.lookEvery = time.Millisecond
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

func TestWaitingTellsWhatWasMissingOfTheDevice(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	for name, c := range map[string]struct {
		spoil func(files map[string]string)
		says  string
	}{
		"size":   {func(f map[string]string) { f["size"] = "0\n" }, "has no size yet"},
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

func TestAPulledDeviceIsNotHeldAndNotFound(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	pulled := d.Device
	pulled.Name, pulled.Path, pulled.Minor = "sdzz", "/dev/sdzz", 1<<19
	held, err := h.Held(pulled)
	require.NoError(t, err)
	assert.False(t, held)
	_, err = h.Probe(context.Background(), pulled)
	require.ErrorIs(t, err, ErrNoDevice)
	require.ErrorIs(t, h.Format(context.Background(), pulled, FormatSpec{FSType: "ext4", Size: 1}), ErrNoDevice)
}

// QEMU's page 0x80 has room for 36 bytes. What does not fit stands in page 0x83, beside names of other kinds.
func TestALongSerialOfAQEMUDiskIsReadWhole(t *testing.T) {
	const long = "volume-of-64-characters-0123456789abcdefghijklmnopqrstuvwxyz-end"
	name := func(set, kind byte, name string) string { return string([]byte{set, kind, 0, byte(len(name))}) + name }
	page := func(names ...string) string {
		all := strings.Join(names, "")
		return string([]byte{0, 0x83, byte(len(all) >> 8), byte(len(all))}) + all
	}
	nid := name(1, 3, "\x50\x00\x00\x00\x00\x00\x00\x01") // binary, of the network address authority
	h := newHost(t)
	d := newDisk(t, ext4Size)
	for _, c := range []struct {
		what, pg80, pg83 string
		found            bool
	}{
		{"as QEMU has it", long[:36], page(name(2, 0, long), nid), true},
		{"behind another", long[:36], page(nid, name(2, 0, long)), true},
		{"another disk that begins so", long[:36], page(name(2, 0, long[:63]+"D"), nid), false},
		{"a disk that begins otherwise", "another-of-36-characters-0123456789a", page(name(2, 0, long)), false},
		{"a shorter serial", long[:35], page(name(2, 0, long)), false},
		{"no such page", long[:36], "", false},
		{"of a port", long[:36], page(name(2, 0x10, long)), false},
		{"of the vendor and product", long[:36], page(name(2, 1, long)), false},
		{"cut off", long[:36], page(name(2, 0, long))[:60], false},
	} {
		t.Run(c.what, func(t *testing.T) {
			files := map[string]string{
				"dev": fmt.Sprintf("%d:%d\n", d.Major, d.Minor), "size": fmt.Sprintf("%d\n", d.Size/512),
				"device/vpd_pg80": "\x00\x80\x00" + string(rune(len(c.pg80))) + c.pg80, subsystem: "bus/scsi",
			}
			if c.pg83 != "" {
				files["device/vpd_pg83"] = c.pg83
			}
			fakeSysfs(t, h, map[string]map[string]string{d.Name: files})
			dev, err := h.Find(context.Background(), long)
			if !c.found {
				require.ErrorIs(t, err, ErrNoDevice)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, long, dev.Serial)
		})
	}
}

func FuzzPageSerial(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x0812345678"))
	f.Add([]byte("\x00\x80\xff\xff1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := pageSerial(b); s != "" {
			assert.Equal(t, byte(0x80), b[1])
			assert.Contains(t, string(b[4:]), s)
			assert.Equal(t, strings.TrimSpace(s), s)
		}
	})
}

func FuzzDesignates(f *testing.F) {
	f.Add([]byte("\x00\x83\x00\x0c\x02\x00\x00\x0812345678"), "12345678")
	f.Add([]byte("\x00\x83\xff\xff\x02\x00\x00\xff1"), "1")
	f.Fuzz(func(t *testing.T, page []byte, serial string) {
		if serial != "" && designates(page, serial) {
			assert.Contains(t, string(page[8:]), serial)
		}
	})
}

func FuzzIdentities(f *testing.F) {
	f.Add([]byte("vol0123456789abcdef0\n"), "vol0123456789abcdef0")
	f.Add([]byte("/a/b (deleted)\n"), "b")
	f.Fuzz(func(t *testing.T, content []byte, serial string) {
		for _, bus := range buses {
			if shown := bus.serial(content); serial != "" && bus.has("", shown, serial) {
				assert.NotEmpty(t, shown, bus.file)
				assert.Contains(t, string(content), shown, bus.file)
				assert.True(t, strings.HasPrefix(serial, shown), bus.file)
			}
		}
	})
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

func FuzzUevent(f *testing.F) {
	f.Add([]byte("add@/devices/virtual/block/loop3\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=loop3\x00"))
	f.Add([]byte("libudev\x00\xfe\xed\xca\xfeSUBSYSTEM=block\x00"))
	f.Add([]byte("add@/devices/net\x00SUBSYSTEM=net\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isBlockEvent(b) {
			assert.Contains(t, string(b), "@/")
			assert.Contains(t, string(b), "SUBSYSTEM=block")
		}
	})
}

func TestKernelEvents(t *testing.T) {
	assert.True(t, isBlockEvent([]byte("change@/devices/virtual/block/loop3\x00ACTION=change\x00SUBSYSTEM=block\x00")))
	assert.True(t, isBlockEvent([]byte("remove@/devices/x\x00SUBSYSTEM=block")))
	assert.False(t, isBlockEvent([]byte("add@/devices/x\x00SUBSYSTEM=net\x00")))
	assert.False(t, isBlockEvent([]byte("libudev\x00\xfe\xed\xca\xfe\x00SUBSYSTEM=block\x00")))
	assert.False(t, isBlockEvent(nil))
}

func TestADeviceThatDoesNotAnswerHoldsUpNobodyForLong(t *testing.T) {
	h := newHost(t)
	h.lookTimeout = 20 * time.Millisecond
	fakeSysfs(t, h, map[string]map[string]string{"vdb": {subsystem: "bus/virtio"}})
	serial := filepath.Join(h.sysfs, "block", "vdb", "serial")
	require.NoError(t, unix.Mkfifo(serial, 0o600)) // the kernel asks a virtio disk for its serial
	for name, ask := range map[string]func() error{
		"Find": func() error { _, err := h.Find(context.Background(), "disk"); return err },
		"Wait": func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second) // long after the look was given up
			defer cancel()
			_, err := h.Wait(ctx, "disk")
			return err
		},
		"WaitGone": func() error { return h.WaitGone(context.Background(), "disk") },
	} {
		answered := make(chan error, 1)
		go func() { answered <- ask() }()
		select {
		case err := <-answered:
			require.ErrorIs(t, err, errNoAnswer, name)
			if name != "Wait" {
				require.NotErrorIs(t, err, ErrNoDevice, "what cannot be told is not missing")
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s does not return", name)
		}
	}
	for range 2 { // so that the looks end
		f, err := os.OpenFile(serial, os.O_WRONLY, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
}
